//! What stands around every page: head, navigation, who looks, the message of the last act, and how fresh it all is.

use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, html};
use sha2::{Digest, Sha256};

use super::{
    super::login,
    flash::{Flash, Tone},
    parts::{icon, short},
};

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

const RECORDED: &str = "Acts are recorded under this name";

const PLACES: [(Place, &str, &str); 4] = [
    (Place::Overview, "/", "Overview"),
    (Place::Jobs, "/jobs", "Jobs"),
    (Place::Groups, "/groups", "Failures"),
    (Place::Workers, "/workers", "Workers"),
];

/// Under which name acts are recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operator<'a> {
    /// Nobody has passed the guard: nothing can be done.
    None,
    /// Nobody has said who they are, and nobody need; they may, and come back to this page.
    Unnamed { name: &'a str, page: &'a str },
    /// A program in between says it, or nobody.
    Told(&'a str),
    /// It was said at the login, which can be ended.
    Session(&'a str),
}

/// Who looks, and where.
#[derive(Clone, Debug)]
pub(super) struct Frame<'a> {
    /// What the page is called, before the name of the program.
    pub(super) title: &'a str,
    pub(super) place: Place,
    pub(super) operator: Operator<'a>,
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
            operator: Operator::None,
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
                            p class={ "flash " (flash.tone.word()) } role=(if flash.tone == Tone::Good { "status" } else { "alert" }) tabindex="-1" {
                                (icon(match flash.tone { Tone::Good => "SUCCESS", Tone::Warning => "PENDING", Tone::Bad => "FAILED" }))
                                span { (flash.text) }
                            }
                        }
                    }
                    main #main tabindex="-1" data-events=[self.events] data-poll=[self.poll] data-pause=[self.events.map(|_| self.pause)] {
                        (content)
                    }
                    footer {
                        p { "cliquet " (env!("CARGO_PKG_VERSION")) " · times in UTC" }
                        p { span #pulse role="status" {} " " span #age hidden {} }
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
                @if self.operator != Operator::None {
                    nav aria-label="Main" {
                        ul {
                            @for (place, path, name) in PLACES {
                                li { a href=(path) aria-current=[(place == self.place).then_some("page")] { (name) } }
                            }
                        }
                    }
                }
                @match &self.operator {
                    Operator::None => {},
                    Operator::Unnamed { name, page } => {
                        p.who { span { "acting as " strong { (short(name, 24)) } " – " a href=(login::address(page)) { "say who you are" } } }
                    },
                    Operator::Told(name) => p.who { span title=(RECORDED) { (short(name, 24)) } },
                    Operator::Session(name) => form.who method="post" action="/logout" {
                        span title=(RECORDED) { (short(name, 24)) }
                        button.quiet type="submit" { "Log out" }
                    },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::web::page::alone::{Asking, failure, login};
    use axum::http::StatusCode;

    #[test]
    fn nothing_in_a_page_is_inline_or_foreign() {
        let flash = Flash::good("done");
        let frame = Frame {
            operator: Operator::Session("ada"),
            flash: Some(&flash),
            events: Some("/api/v1/events"),
            ..Frame::new("Jobs", Place::Jobs)
        };
        let asking = Asking {
            refusal: Some("no"),
            lost: true,
            token: true,
            next: "/",
        };
        for page in [
            frame.around(html! {}),
            login(&asking),
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
    fn whoever_has_not_said_who_they_are_is_asked_to() {
        let head = |operator| {
            let frame = Frame {
                operator,
                ..Frame::new("Jobs", Place::Jobs)
            };
            frame.around(html! {}).into_string()
        };
        let (name, page) = ("http", "/jobs?status=FAILED");
        let unnamed = head(Operator::Unnamed { name, page });
        assert!(
            unnamed.contains("acting as <strong>http</strong>")
                && unnamed.contains("href=\"/login?next=%2Fjobs%3Fstatus%3DFAILED\""),
            "{unnamed}"
        );
        let named = head(Operator::Session("<ada>"));
        assert!(
            named.contains("&lt;ada&gt;") && named.contains("Log out"),
            "{named}"
        );
        let told = head(Operator::Told("ada"));
        assert!(told.contains("ada") && !told.contains("Log out"), "{told}");
    }

    #[test]
    fn the_address_of_a_file_changes_with_its_content() {
        assert_ne!(version("a"), version("b"));
        assert_eq!(*STYLE_PATH, format!("/style.css?{}", version(STYLE)));
    }
}
