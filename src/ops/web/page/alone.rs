//! Pages that stand alone: the one that asks who somebody is, and the one that says what is wrong.

use axum::http::StatusCode;
use maud::{Markup, html};

use super::{
    frame::{Frame, Place},
    parts::{error, icon},
};

/// What the login says, and what it asks for.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops::web) struct Asking<'a> {
    /// Why what was given is not taken.
    pub(in crate::ops::web) refusal: Option<&'a str>,
    /// Whether somebody wanted to act, and their session had ended.
    pub(in crate::ops::web) lost: bool,
    /// Whether a token is asked for, or a name only.
    pub(in crate::ops::web) token: bool,
    /// Where it leads.
    pub(in crate::ops::web) next: &'a str,
}

/// The page that asks who somebody is and, where there is a token, for that.
pub(in crate::ops::web) fn login(asking: &Asking<'_>) -> Markup {
    let Asking {
        refusal,
        lost,
        token,
        next,
    } = *asking;
    let heading = if token { "Log in" } else { "Say who you are" };
    Frame::new(heading, Place::Other).around(html! {
        div.narrow {
            h1 { (heading) }
            @if lost {
                p .flash.warn role="alert" { (icon("PENDING")) span { "Your session had ended: nothing was done. Once you are known again, look at the page and press once more." } }
            }
            @if token {
                p { "Whoever has the token of this cliquet may look, retry, cancel and skip. Acts are recorded under the name that you give." }
            } @else {
                p { "Acts are recorded under the name that you give, for 8 hours in this browser. Nobody checks it: this cliquet has no token, and answers only to its own machine." }
            }
            @if let Some(refusal) = refusal {
                p #refusal .flash.bad role="alert" { (icon("FAILED")) span { (refusal) } }
            }
            form.card.stack method="post" action="/login" {
                input type="hidden" name="next" value=(next);
                label { "Your name"
                    input type="text" name="operator" required maxlength="100" autocomplete="username" autofocus;
                }
                @if token {
                    label { "Token"
                        input type="password" name="token" required autocomplete="current-password" aria-describedby=[refusal.map(|_| "refusal")];
                    }
                }
                button type="submit" { @if token { "Log in" } @else { "Go on under this name" } }
            }
            @if token {
                p.muted { "The token is what " code { "CLIQUET_HTTP_TOKEN" } " says where " code { "cliquet" } " was started." }
            } @else {
                p { a href=(next) { "Go on without a name" } }
            }
        }
    })
}

/// A page that could not be had: what happened, and where to go on.
pub(in crate::ops::web) fn failure(status: StatusCode, sentence: &str) -> Markup {
    let heading = match status {
        StatusCode::NOT_FOUND => "Not found",
        StatusCode::BAD_REQUEST => "This request cannot be read",
        StatusCode::UNAUTHORIZED => "Who are you?",
        StatusCode::FORBIDDEN => "Refused",
        // A service is away, or too much is asked at a time: the sentence says which.
        StatusCode::SERVICE_UNAVAILABLE => "Not now",
        _ => status.canonical_reason().unwrap_or("It did not work"),
    };
    Frame::new(heading, Place::Other).around(html! {
        div.narrow {
            h1 { (heading) }
            div.card { (error(sentence)) }
            @if status == StatusCode::UNAUTHORIZED { p { a href="/login" { "Log in" } } }
            p { a href="/" { "To the overview" } }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKING: Asking<'_> = Asking {
        refusal: None,
        lost: false,
        token: true,
        next: "/jobs?\"><script>",
    };

    #[test]
    fn what_failed_is_escaped_and_says_where_to_go() {
        let page = failure(StatusCode::NOT_FOUND, "the ledger knows no job <b>").into_string();
        assert!(
            page.contains("the ledger knows no job &lt;b&gt;") && page.contains("href=\"/\""),
            "{page}"
        );
        assert!(!page.contains("href=\"/login\""), "{page}");
        let page = failure(StatusCode::UNAUTHORIZED, "the token").into_string();
        assert!(page.contains("href=\"/login\""), "{page}");
    }

    #[test]
    fn the_login_asks_for_what_there_is_and_tells_of_an_act_that_was_lost() {
        let page = login(&ASKING).into_string();
        assert!(
            page.contains("value=\"/jobs?&quot;&gt;&lt;script&gt;\"")
                && page.contains("name=\"token\"")
                && !page.contains("nothing was done"),
            "{page}"
        );
        let page = login(&Asking {
            lost: true,
            token: false,
            ..ASKING
        });
        let page = page.into_string();
        assert!(
            page.contains("Your session had ended: nothing was done.")
                && page.contains("name=\"operator\"")
                && !page.contains("name=\"token\""),
            "{page}"
        );
    }
}
