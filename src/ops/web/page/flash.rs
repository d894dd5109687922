//! What an act came to, carried over one redirect: in a cookie of half a minute that the next page takes away.

use axum::http::{HeaderMap, HeaderValue, header};
use url::form_urlencoded;

use crate::ops::words::one_line;

const NAME: &str = "cliquet-flash";
/// Browsers keep 4 KiB of a cookie. So many bytes its text may take as it is written there, where a letter takes up to twelve.
const LONGEST: usize = 3_500;

/// Whether what was asked for is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// It is.
    Good,
    /// It is, or a part of it; and something is to be known besides.
    Warning,
    /// It is not.
    Bad,
}

impl Tone {
    /// How the cookie and the style call it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warn",
            Self::Bad => "bad",
        }
    }
}

/// A sentence for whoever has just acted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flash {
    pub(super) tone: Tone,
    pub(super) text: String,
}

impl Flash {
    pub(super) fn good(text: impl Into<String>) -> Self {
        Self::of_tone(Tone::Good, text)
    }

    pub(super) fn bad(text: impl Into<String>) -> Self {
        Self::of_tone(Tone::Bad, text)
    }

    pub(super) fn of_tone(tone: Tone, text: impl Into<String>) -> Self {
        Self {
            tone,
            text: text.into(),
        }
    }

    /// The cookie that carries it.
    pub(super) fn cookie(&self) -> HeaderValue {
        let text = fitting(one_line(&self.text));
        let value = form_urlencoded::Serializer::new(String::new())
            .append_pair(self.tone.word(), &text)
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
        let tones = [Tone::Good, Tone::Warning, Tone::Bad];
        let tone = tones.into_iter().find(|tone| tone.word() == name)?;
        (!text.is_empty()).then(|| Self::of_tone(tone, text))
    }
}

/// The text, cut to what a cookie holds. What to do is told at the end of a sentence, so as much as possible is kept.
fn fitting(text: String) -> String {
    const END: char = '…';
    if text.chars().map(written).sum::<usize>() <= LONGEST {
        return text;
    }
    let mut bytes = written(END);
    let mut kept: String = text
        .chars()
        .take_while(|letter| {
            bytes += written(*letter);
            bytes <= LONGEST
        })
        .collect();
    kept.push(END);
    kept
}

/// How many bytes a letter takes in the cookie.
fn written(letter: char) -> usize {
    let mut bytes = [0; 4];
    form_urlencoded::byte_serialize(letter.encode_utf8(&mut bytes).as_bytes())
        .map(str::len)
        .sum()
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
            Flash::of_tone(Tone::Warning, "but"),
        ] {
            let found = carried(&flash).unwrap();
            assert_eq!(found.tone, flash.tone);
            assert_eq!(found.text, one_line(&flash.text));
        }
    }

    #[test]
    fn a_long_sentence_keeps_what_to_do_and_fits_a_cookie_in_any_script() {
        let remedy = "GRANT cliquet_operator TO that user";
        let long = Flash::bad(format!(
            "{}: {remedy}",
            "a reason of the ledger ".repeat(100)
        ));
        assert!(carried(&long).unwrap().text.ends_with(remedy));
        for letters in ["商", "a", "🦀", "% "] {
            let longer = Flash::bad(letters.repeat(5_000));
            assert!(longer.cookie().len() < 4_000, "{letters}");
            let text = carried(&longer).unwrap().text;
            assert!(text.ends_with('…'), "{letters}");
            let used: usize = text.chars().map(written).sum();
            assert!(
                (LONGEST - 20..=LONGEST).contains(&used),
                "{letters}: {used}"
            );
        }
    }

    #[test]
    fn no_cookie_and_an_odd_one_are_nothing() {
        assert_eq!(Flash::of(&HeaderMap::new()), None);
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("cliquet-flash="));
        assert_eq!(Flash::of(&headers), None);
    }
}
