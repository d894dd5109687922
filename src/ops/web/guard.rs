//! Who may ask, and what every answer carries.
//!
//! | layer | refuses | since |
//! |---|---|---|
//! | [`from_here`] | a `Host` that is no name of this machine, where nobody needs a token | a foreign page may give its own name this machine's address (DNS rebinding), and would then be of the same origin |
//! | | a write that another site's page makes | the browser would send the cookie of whoever looks at that page, or needs none |
//! | | what another site's page loads, other than by a link that somebody follows | it could measure how long the answer takes, and keep this server busy |
//! | [`admitted`] | whoever shows neither the token nor a session | |
//! | [`dressed`] | nothing | a browser is told to load nothing foreign, to guess no types and to keep no copy |
//!
//! With a token any `Host` will do, such as the public name at a reverse proxy: a rebound name has no cookie of this server,
//! and its page does not know the token.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    Shared, auth,
    failure::{Problem, is_page},
    login,
};

/// What every answer carries, unless its handler says otherwise.
const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    // Not `no-referrer`: browsers then send `Origin: null` with forms.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// Refuses what a page of another site makes a browser ask.
pub(super) async fn from_here(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_open = matches!(request.uri().path(), "/livez" | "/readyz");
    if app.token.is_none() && !is_open {
        // A request line may name a host, too; it wins over the header.
        let named = request.uri().authority().map(|named| named.as_str());
        let host = named.or_else(|| text(headers, &header::HOST));
        if let Some(host) = host.filter(|host| !is_loopback(host)) {
            return Problem::new(
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "this server is not called {host:?}: without a token it answers to localhost, 127.0.0.1 and [::1] only. Set CLIQUET_HTTP_TOKEN to let it answer to any name"
                ),
            )
            .into_response();
        }
    }
    let reads = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !reads && !is_of_this_origin(headers) {
        return Problem::forbidden(
            "this request comes from a page of another site; it is refused, since only this server's own pages and programs may change anything",
        )
        .into_response();
    }
    if reads && !is_open && is_loaded_elsewhere(headers) {
        return Problem::forbidden(
            "a page of another site wants to load this; it is refused: open it in the browser itself",
        )
        .into_response();
    }
    next.run(request).await
}

/// Lets through whoever has the token or a session, and tells the handlers who that is.
pub(super) async fn admitted(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    match auth::who(&app, request.headers()) {
        Ok(who) => {
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(problem) if problem.status == StatusCode::UNAUTHORIZED => {
            let (uri, headers) = (request.uri(), request.headers());
            if !is_page(uri.path(), headers) || shows_a_token(headers) {
                return problem.into_response();
            }
            // Back to where they wanted to look; what was to be changed is not repeated.
            let wanted = uri.path_and_query().map_or("/", |wanted| wanted.as_str());
            let login = if request.method() == Method::GET {
                login::address(wanted)
            } else {
                login::address_of_lost(pressed_on(uri.path()))
            };
            Redirect::to(&login).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

/// Whether a program shows a token, or what it takes for one. A proxy's own scheme is not meant for this server.
fn shows_a_token(headers: &HeaderMap) -> bool {
    let scheme = text(headers, &header::AUTHORIZATION).and_then(|shown| shown.split(' ').next());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
}

/// The page whose button leads to this path.
fn pressed_on(path: &str) -> &str {
    match path.strip_prefix('/').map(|path| path.split_once('/')) {
        Some(Some(("jobs", rest))) => {
            let id = rest.split('/').next().unwrap_or_default();
            &path[.."/jobs/".len() + id.len()]
        }
        Some(Some(("groups", _))) => "/groups",
        _ => "/",
    }
}

/// Gives every answer its headers, and people a page in place of JSON when something is wrong.
pub(super) async fn dressed(State(_): State<Shared>, request: Request, next: Next) -> Response {
    let page = is_page(request.uri().path(), request.headers());
    let mut response = next.run(request).await;
    if page && let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let kept = response.headers().clone();
        response = login::failure(problem.status, &problem.sentence);
        for name in [header::ALLOW, header::WWW_AUTHENTICATE] {
            if let Some(value) = kept.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    for (name, value) in HEADERS {
        let (name, value) = (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a `Host` is this machine's own name for itself. Its port may be that of a tunnel.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether a page of another site loads this as a part of itself, as browsers say. Following a link is another matter.
fn is_loaded_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    matches!(site, Some(b"cross-site" | b"same-site")) && mode != Some(b"navigate")
}

/// Whether a write comes from this server's own pages, or from no page at all. Browsers say where a write comes from, in
/// `Sec-Fetch-Site` (where they trust the address) or in `Origin`; programs say neither.
fn is_of_this_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    match (origin, text(headers, &header::HOST)) {
        (Some((_, origin)), Some(host)) => origin.eq_ignore_ascii_case(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_names_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:9464",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "[::2]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_press_that_was_lost_leads_back_to_its_page() {
        for (path, page) in [
            ("/jobs/1/retry", "/jobs/1"),
            ("/jobs/1", "/jobs/1"),
            ("/jobs/é/x/y", "/jobs/é"),
            ("/groups/ab/cancel", "/groups"),
            ("/logout", "/"),
            ("", "/"),
        ] {
            assert_eq!(pressed_on(path), page);
        }
    }

    #[test]
    fn only_a_bearer_is_a_token() {
        let of = |value: &'static str| {
            let mut map = HeaderMap::new();
            map.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            shows_a_token(&map)
        };
        assert!(of("Bearer x") && of("bearer") && !of("Basic eDp5") && !of(""));
        assert!(!shows_a_token(&HeaderMap::new()));
    }

    #[test]
    fn a_write_of_another_sites_page_is_told_by_its_headers() {
        let of = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, HeaderValue::from_static(value));
            }
            is_of_this_origin(&map)
        };
        let host = ("host", "here:9464");
        assert!(of(&[host]));
        assert!(of(&[host, ("sec-fetch-site", "same-origin")]));
        // At a proxy that gives the server another name; the browser knows better.
        assert!(of(&[
            host,
            ("sec-fetch-site", "same-origin"),
            ("origin", "https://public")
        ]));
        assert!(of(&[host, ("origin", "http://here:9464")]));
        for other in ["cross-site", "same-site", ""] {
            assert!(!of(&[host, ("sec-fetch-site", other)]), "{other}");
        }
        for other in [
            "null",
            "http://here",
            "http://here:9465",
            "https://evil.example",
        ] {
            assert!(!of(&[host, ("origin", other)]), "{other}");
        }
    }
}
