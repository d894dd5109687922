//! What stands around every page: head, navigation, the message of the last act; and the pages that are no more than that.

use std::sync::LazyLock;

use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, html};
use sha2::{Digest, Sha256};

use super::flash::Flash;

pub(super) const STYLE: &str = include_str!("style.css");
pub(super) const SCRIPT: &str = include_str!("page.js");

/// A ratchet's tooth. As data, so that browsers ask for no other icon.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' rx='4' fill='%230f766e'/%3E%3Cpath d='M3 12.5V9.5L6 5v3.5L9 4v3.500L13 3v9.500z' fill='%23fff'/%3E%3C/svg%3E";

/// The address of a file that never changes under it, since its content's hash is a part.
pub(super) static STYLE_PATH: LazyLock<String> =
    LazyLock::new(|| format!("/style.css?{}", version(STYLE)));
pub(super) static SCRIPT_PATH: LazyLock<String> =
    LazyLock::new(|| format!("/page.js?{}", version(SCRIPT)));

/// `v=…`, of a file's content.
pub(super) fn version(content: &str) -> String {
    let hash = Sha256::digest(content.as_bytes());
    let digits: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("v={digits}")
}

/// The places that the navigation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Jobs,
    Groups,
    Workers,
    /// Somewhere else: one job, or nowhere.
    Other,
}

const PLACES: [(Place, &str, &str); 4] = [
    (Place::Overview, "/", "Overview"),
    (Place::Jobs, "/jobs", "Jobs"),
    (Place::Groups, "/groups", "Failures"),
    (Place::Workers, "/workers", "Workers"),
];

/// Who looks, and where.
#[derive(Clone, Debug)]
pub(super) struct Frame<'a> {
    /// What the page is called, before the name of the program.
    pub(super) title: &'a str,
    pub(super) place: Place,
    /// Under which name acts are recorded; none where nobody has passed the guard.
    pub(super) operator: Option<&'a str>,
    /// Whether there is a token, and so a session that may end.
    pub(super) session: bool,
    pub(super) flash: Option<&'a Flash>,
    /// Where the server tells of changes, for as long as some may come.
    pub(super) events: Option<&'a str>,
    /// After how many milliseconds to look again where no event tells of a change.
    pub(super) poll: Option<u32>,
    /// The least pause between two looks, in milliseconds.
    pub(super) pause: u32,
}

impl<'a> Frame<'a> {
    /// A page that nothing changes, of nobody.
    pub(super) fn new(title: &'a str, place: Place) -> Self {
        Self {
            title,
            place,
            operator: None,
            session: false,
            flash: None,
            events: None,
            poll: None,
            pause: 250,
        }
    }

    /// The whole page around its content.
    pub(super) fn around(&self, content: Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    title { (self.title) " · cliquet" }
                    link rel="icon" href=(ICON);
                    link rel="stylesheet" href=(*STYLE_PATH);
                    script src=(*SCRIPT_PATH) defer {}
                }
                body {
                    a.skip href="#main" { "Skip to content" }
                    (self.header())
                    div #flash {
                        @if let Some(flash) = self.flash {
                            p class={ "flash " @if flash.good { "good" } @else { "bad" } } role=[flash.good.then_some("status")] role=[(!flash.good).then_some("alert")] {
                                (super::parts::icon(if flash.good { "SUCCESS" } else { "FAILED" }))
                                span { (flash.text) }
                            }
                        }
                    }
                    main #main tabindex="-1" data-events=[self.events] data-poll=[self.poll] data-pause=[self.events.map(|_| self.pause)] {
                        (content)
                    }
                    footer {
                        p { "cliquet " (env!("CARGO_PKG_VERSION")) " · times in UTC" }
                        p #pulse hidden {}
                    }
                }
            }
        }
    }

    fn header(&self) -> Markup {
        html! {
            header.top {
                a.brand href="/" {
                    svg viewBox="0 0 16 16" aria-hidden="true" { path d="M1.500 13V9.500L5 5v3.500L8.500 4v3.500L14 2v11z" {} }
                    "cliquet"
                }
                @if self.operator.is_some() {
                    nav aria-label="Main" {
                        ul {
                            @for (place, path, name) in PLACES {
                                li { a href=(path) aria-current=[(place == self.place).then_some("page")] { (name) } }
                            }
                        }
                    }
                }
                @if let (Some(operator), true) = (self.operator, self.session) {
                    form.who method="post" action="/logout" {
                        span title="Acts are recorded under this name" { (super::parts::short(operator, 24)) }
                        button.quiet type="submit" { "Log out" }
                    }
                }
            }
        }
    }
}

/// The page that asks for the token, and then leads to `next`.
pub(in crate::ops::web) fn login(error: Option<&str>, next: &str) -> Markup {
    Frame::new("Log in", Place::Other).around(html! {
        div.narrow {
            h1 { "Log in" }
            p { "Whoever has the token of this cliquet may look, retry, cancel and skip. Acts are recorded under the name that you give." }
            @if let Some(error) = error {
                p #refusal .flash.bad role="alert" { (super::parts::icon("FAILED")) span { (error) } }
            }
            form.card.stack method="post" action="/login" {
                input type="hidden" name="next" value=(next);
                label { "Your name"
                    input type="text" name="operator" required maxlength="100" autocomplete="username" autofocus;
                }
                label { "Token"
                    input type="password" name="token" required autocomplete="current-password" aria-describedby=[error.map(|_| "refusal")];
                }
                button type="submit" { "Log in" }
            }
            p.muted { "The token is what " code { "CLIQUET_HTTP_TOKEN" } " says where " code { "cliquet" } " was started." }
        }
    })
}

/// A page that could not be had: what happened, and where to go on.
pub(in crate::ops::web) fn failure(status: StatusCode, sentence: &str) -> Markup {
    let heading = match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::BAD_REQUEST => "This address cannot be read",
        StatusCode::FORBIDDEN => "Refused",
        StatusCode::SERVICE_UNAVAILABLE => "A service is away",
        _ => status.canonical_reason().unwrap_or("It did not work"),
    };
    Frame::new(heading, Place::Other).around(html! {
        div.narrow {
            h1 { (heading) }
            div.card { (super::parts::error(sentence)) }
            p { a href="/" { "To the overview" } }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_page_is_inline_or_foreign() {
        let flash = Flash::good("done");
        let frame = Frame {
            operator: Some("ada"),
            session: true,
            flash: Some(&flash),
            events: Some("/api/v1/events"),
            ..Frame::new("Jobs", Place::Jobs)
        };
        for page in [
            frame.around(html! {}),
            login(Some("no"), "/"),
            failure(StatusCode::NOT_FOUND, "no job"),
        ] {
            let page = page.into_string();
            for forbidden in [
                "style=",
                "<style",
                "onclick",
                "javascript:",
                "https://",
                "<script>",
                "src=\"//",
            ] {
                assert!(!page.contains(forbidden), "{forbidden}: {page}");
            }
            // The one address with a host is the name of SVG's language, inside the icon.
            assert_eq!(
                page.matches("http://").count(),
                page.matches("xmlns='http://www.w3.org/2000/svg'").count()
            );
            assert!(
                page.contains("<html lang=\"en\">") && page.contains("href=\"#main\""),
                "{page}"
            );
        }
    }

    #[test]
    fn what_failed_is_escaped_and_says_where_to_go() {
        let page = failure(StatusCode::NOT_FOUND, "the ledger knows no job <b>").into_string();
        assert!(
            page.contains("the ledger knows no job &lt;b&gt;") && page.contains("href=\"/\""),
            "{page}"
        );
        let page = login(None, "/jobs?\"><script>").into_string();
        assert!(
            page.contains("value=\"/jobs?&quot;&gt;&lt;script&gt;\""),
            "{page}"
        );
    }

    #[test]
    fn the_address_of_a_file_changes_with_its_content() {
        assert_ne!(version("a"), version("b"));
        assert_eq!(*STYLE_PATH, format!("/style.css?{}", version(STYLE)));
    }
}
