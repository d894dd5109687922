//! How a browser shows the token: once, for a session in a cookie that no script and no other site gets at. Without a token
//! it may say a name, for the same.

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;
use url::form_urlencoded;

use super::{
    Shared,
    auth::{self, LASTS},
    failure::Problem,
    guard::{is_loopback, text},
    page::{self, Asking},
};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/login", get(ask).post(enter))
        .route("/logout", post(leave))
}

/// Where the token is asked for by whoever wanted to look at `next`.
pub(super) fn address(next: &str) -> String {
    let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
    format!("/login?next={next}")
}

/// The same for whoever wanted to act on what `next` shows: nothing was done, and that is told.
pub(super) fn address_of_lost(next: &str) -> String {
    format!("{}&lost=1", address(next))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Form {
    token: String,
    operator: String,
    next: String,
}

async fn ask(State(app): State<Shared>, request: Request) -> Html<String> {
    let query = request.uri().query().unwrap_or_default();
    let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let next = pairs.iter().find(|(name, _)| name == "next");
    form(&Asking {
        refusal: None,
        lost: pairs.iter().any(|(name, _)| name == "lost"),
        token: app.token.is_some(),
        next: next.map_or("/", |(_, next)| own_path(next)),
    })
}

async fn enter(
    State(app): State<Shared>,
    headers: HeaderMap,
    axum::Form(given): axum::Form<Form>,
) -> Response {
    let next = own_path(&given.next);
    let again = |status: StatusCode, sentence: &str| {
        let asking = Asking {
            refusal: Some(sentence),
            lost: false,
            token: app.token.is_some(),
            next,
        };
        (status, form(&asking)).into_response()
    };
    if let Some(token) = &app.token
        && !token.is(given.token.trim())
    {
        app.refusals.told();
        return again(StatusCode::UNAUTHORIZED, "This is not the token.");
    }
    let operator = match given.operator.trim() {
        "" => "http",
        name => name,
    };
    let operator = match auth::operator(operator) {
        Ok(operator) => operator,
        Err(sentence) => return again(StatusCode::BAD_REQUEST, &sentence),
    };
    let secure = match is_private(&app, &headers) {
        Privacy::Encrypted => "; Secure",
        Privacy::SameMachine => "",
        Privacy::None => {
            return again(
                StatusCode::BAD_REQUEST,
                "This connection is not encrypted, so everybody between could take your session: come over https (a reverse proxy), or from this machine (ssh -L).",
            );
        }
    };
    let id = app.sessions.begin(operator);
    let cookie = format!(
        "{}={id}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}{secure}",
        auth::cookie(&app),
        LASTS.as_secs()
    );
    with_cookie(next, &cookie)
}

async fn leave(State(app): State<Shared>, headers: HeaderMap) -> Response {
    if let Some(id) = auth::session(&app, &headers) {
        app.sessions.end(id);
    }
    let cookie = format!(
        "{}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0",
        auth::cookie(&app)
    );
    with_cookie("/login", &cookie)
}

fn with_cookie(next: &str, cookie: &str) -> Response {
    let mut response = Redirect::to(next).into_response();
    match HeaderValue::from_str(cookie) {
        Ok(cookie) => {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response
        }
        Err(_) => Problem::broken().into_response(),
    }
}

/// What a session may travel over.
enum Privacy {
    /// The browser came over https, to a proxy before this server.
    Encrypted,
    /// Nothing leaves the machine, or a tunnel that begins and ends on one.
    SameMachine,
    None,
}

fn is_private(app: &Shared, headers: &HeaderMap) -> Privacy {
    let proxied = headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
    let origin = text(headers, &header::ORIGIN).unwrap_or_default();
    let local = match text(headers, &header::HOST) {
        Some(host) => is_loopback(host),
        None => app.address.ip().is_loopback(),
    };
    if proxied.is_some_and(|proto| proto.eq_ignore_ascii_case(b"https"))
        || origin.starts_with("https://")
    {
        Privacy::Encrypted
    } else if local {
        Privacy::SameMachine
    } else {
        Privacy::None
    }
}

/// The path, if it is one of this server's; a foreign page must not be where a login leads.
fn own_path(next: &str) -> &str {
    let mut letters = next.chars();
    let own = letters.next() == Some('/')
        && !matches!(letters.next(), Some('/' | '\\'))
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    if own { next } else { "/" }
}

/// The form that asks who somebody is.
fn form(asking: &Asking<'_>) -> Html<String> {
    Html(page::login(asking).into_string())
}

/// What is wrong, for people.
pub(super) fn failure(status: StatusCode, sentence: &str) -> Response {
    let page = page::failure(status, sentence);
    (status, Html(page.into_string())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_no_foreign_page() {
        for own in ["/", "/jobs?status=FAILED", "/jobs/1"] {
            assert_eq!(own_path(own), own);
        }
        for foreign in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "jobs",
            "/\n/evil.example",
            "/\t",
        ] {
            assert_eq!(own_path(foreign), "/", "{foreign:?}");
        }
    }
}
