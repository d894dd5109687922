//! What an act came to, carried over one redirect: in a cookie of half a minute that the next page takes away.

use axum::http::{HeaderMap, HeaderValue, header};
use url::form_urlencoded;

const NAME: &str = "cliquet-flash";
/// A cookie has 4 KiB, and a letter takes up to twelve bytes of it.
const LONGEST: usize = 300;

/// A sentence for whoever has just acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flash {
    /// Whether it is what was asked for.
    pub(super) good: bool,
    pub(super) text: String,
}

impl Flash {
    pub(super) fn good(text: impl Into<String>) -> Self {
        Self {
            good: true,
            text: text.into(),
        }
    }

    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self {
            good: false,
            text: text.into(),
        }
    }

    /// The cookie that carries it.
    pub(super) fn cookie(&self) -> HeaderValue {
        let text = crate::ops::words::cut(&crate::ops::words::one_line(&self.text), LONGEST);
        let name = if self.good { "good" } else { "bad" };
        let value = form_urlencoded::Serializer::new(String::new())
            .append_pair(name, &text)
            .finish();
        let cookie = format!("{NAME}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age=30");
        // Percent-encoded, it is ASCII without a control character.
        HeaderValue::try_from(cookie).unwrap_or_else(|_| Self::taken())
    }

    /// The cookie that takes it away.
    pub(super) fn taken() -> HeaderValue {
        HeaderValue::from_static("cliquet-flash=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    /// What a request carries.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers
            .get_all(header::COOKIE)
            .into_iter()
            .filter_map(|line| line.to_str().ok());
        let value = cookies
            .flat_map(|line| line.split(';'))
            .find_map(|cookie| cookie.trim().strip_prefix(NAME)?.strip_prefix('='))?;
        let (name, text) = form_urlencoded::parse(value.as_bytes()).next()?;
        (!text.is_empty()).then(|| Self {
            good: name == "good",
            text: text.into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(flash: &Flash) -> Option<Flash> {
        let cookie = flash.cookie();
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, format!("a=b; {pair}; c=d").parse().unwrap());
        Flash::of(&headers)
    }

    #[test]
    fn a_sentence_survives_its_cookie() {
        for flash in [
            Flash::good("31 jobs; \"done\" = é, 商品 & <b>"),
            Flash::bad("100 % refused\r\nSet-Cookie: x=y"),
        ] {
            let found = carried(&flash).unwrap();
            assert_eq!(found.good, flash.good);
            assert_eq!(found.text, crate::ops::words::one_line(&flash.text));
        }
        let long = Flash::bad("商".repeat(5_000));
        assert!(long.cookie().len() < 4_000);
        assert!(carried(&long).unwrap().text.ends_with('…'));
    }

    #[test]
    fn no_cookie_and_an_odd_one_are_nothing() {
        assert_eq!(Flash::of(&HeaderMap::new()), None);
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("cliquet-flash="));
        assert_eq!(Flash::of(&headers), None);
    }
}
