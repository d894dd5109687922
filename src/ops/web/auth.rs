//! The token, the sessions of browsers that have shown it, and who acts.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::warn;
use uuid::Uuid;

use super::{App, failure::Problem, guard::text};

/// The variable of the environment; never an option, which everybody sees in `ps`.
const VARIABLE: &str = "CLIQUET_HTTP_TOKEN";
const LEAST_CHARACTERS: usize = 16;
/// How long a session lasts.
pub(super) const LASTS: Duration = Duration::from_secs(8 * 3600);
/// The most sessions; beyond them the one that ends first gives way.
const MOST_SESSIONS: usize = 1_000;
/// The longest name of an operator, in characters.
const LONGEST_NAME: usize = 100;
/// The pause between two lines of the log about wrong tokens.
const TOLD: Duration = Duration::from_secs(10);
/// Who acts, when nobody says.
pub(super) const NOBODY: &str = "http";

/// What lets in: its hash, so that a comparison takes as long whatever is compared.
pub(super) struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Token {
    /// The token of the environment, if there is one.
    ///
    /// # Errors
    /// A sentence, without the token, when it is too short or cannot stand in a header.
    pub(super) fn of_environment() -> Result<Option<Self>, String> {
        match std::env::var_os(VARIABLE) {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => Self::new(&text.to_string_lossy()).map(Some),
        }
    }

    fn new(text: &str) -> Result<Self, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{VARIABLE} has white space or other characters in it that cannot stand in a header; expected letters, digits and signs, such as `openssl rand -hex 32` prints"
            ));
        }
        if text.len() < LEAST_CHARACTERS {
            return Err(format!(
                "{VARIABLE} has {} characters, which can be guessed; expected at least {LEAST_CHARACTERS}, such as `openssl rand -hex 32` prints",
                text.len()
            ));
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Whether this is the token.
    pub(super) fn is(&self, text: &str) -> bool {
        self.0.ct_eq(&Sha256::digest(text)).into()
    }
}

/// Browsers that have shown the token. In memory: a restart asks for it again.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

struct Session {
    operator: String,
    ends: Instant,
}

impl Sessions {
    /// Begins a session, and answers with its id, which only the browser keeps: here is its hash.
    pub(super) fn begin(&self, operator: String) -> String {
        let id = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let now = Instant::now();
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= MOST_SESSIONS
            && let Some(first) = sessions.iter().min_by_key(|(_, session)| session.ends)
        {
            let first = *first.0;
            sessions.remove(&first);
        }
        let session = Session {
            operator,
            ends: now + LASTS,
        };
        sessions.insert(Sha256::digest(&id).into(), session);
        id
    }

    fn operator(&self, id: &str) -> Option<String> {
        let id: [u8; 32] = Sha256::digest(id).into();
        let sessions = self.sessions();
        let session = sessions.get(&id)?;
        (session.ends > Instant::now()).then(|| session.operator.clone())
    }

    /// Ends the session of this id.
    pub(super) fn end(&self, id: &str) {
        let id: [u8; 32] = Sha256::digest(id).into();
        self.sessions().remove(&id);
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wrong tokens, told in the log at most once in [`TOLD`]: whoever tries many must not fill it.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Refused>);

#[derive(Default)]
struct Refused {
    last: Option<Instant>,
    untold: u64,
}

impl Refusals {
    /// One more.
    pub(super) fn told(&self) {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refused.untold += 1;
        if refused.last.is_none_or(|last| last.elapsed() >= TOLD) {
            warn!(
                tries = refused.untold,
                "HTTP: somebody shows a wrong token, and is refused"
            );
            *refused = Refused {
                last: Some(Instant::now()),
                untold: 0,
            };
        }
    }
}

/// Whoever has passed the guard.
#[derive(Clone, Debug)]
pub(super) struct Who {
    /// The name that the ledger keeps with what they do.
    pub(super) operator: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Behind the guard there always is somebody.
        let who = parts.extensions.get::<Self>().cloned();
        Ok(who.unwrap_or_else(|| Self {
            operator: NOBODY.to_owned(),
        }))
    }
}

/// Who asks; 401 when they show nothing that lets them in.
pub(super) fn who(app: &App, headers: &HeaderMap) -> Result<Who, Problem> {
    let shown = bearer(headers);
    match (&app.token, shown) {
        (Some(token), Some(shown)) if !token.is(shown) => {
            app.refusals.told();
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "this is not the token; it is the one in CLIQUET_HTTP_TOKEN of the server",
            ));
        }
        (Some(_), Some(_)) | (None, _) => {}
        (Some(_), None) => {
            let session = session(app, headers).and_then(|id| app.sessions.operator(id));
            return session.map(|operator| Who { operator }).ok_or_else(|| {
                Problem::new(
                    StatusCode::UNAUTHORIZED,
                    "this server asks for its token: in the header `Authorization: Bearer TOKEN`, or at /login",
                )
            });
        }
    }
    if let Some(operator) = session(app, headers).and_then(|id| app.sessions.operator(id)) {
        return Ok(Who { operator });
    }
    let operator = match headers.get("cliquet-operator") {
        None => NOBODY.to_owned(),
        Some(name) => operator(&String::from_utf8_lossy(name.as_bytes()))
            .map_err(|sentence| Problem::bad(format!("the header Cliquet-Operator: {sentence}")))?,
    };
    Ok(Who { operator })
}

/// The name of an operator as the ledger keeps it.
///
/// # Errors
/// A sentence.
pub(super) fn operator(name: &str) -> Result<String, String> {
    let name = name.trim();
    let long = name.chars().count() > LONGEST_NAME;
    if name.is_empty() || long || name.chars().any(char::is_control) {
        return Err(format!(
            "{name:?} is no name of an operator; expected one line of 1 to {LONGEST_NAME} characters"
        ));
    }
    Ok(name.to_owned())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, &header::AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The name of the cookie. Browsers tell hosts apart and not ports, and a machine may have several workers.
pub(super) fn cookie(app: &App) -> String {
    format!("cliquet-{}", app.address.port())
}

/// The id of the browser's session.
pub(super) fn session<'h>(app: &App, headers: &'h HeaderMap) -> Option<&'h str> {
    value(&cookie(app), headers)
}

fn value<'h>(wanted: &str, headers: &'h HeaderMap) -> Option<&'h str> {
    let cookies = headers.get_all(header::COOKIE).into_iter();
    let mut pairs = cookies
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(name, id)| (name == wanted).then_some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_refused_when_it_can_be_guessed_or_not_be_sent_and_is_never_told() {
        for bad in [
            "short",
            "fifteen-letters",
            "white space in the token",
            "sixteen\nletters-and",
        ] {
            let told = Token::new(bad).unwrap_err();
            assert!(told.contains(VARIABLE) && !told.contains(bad), "{told}");
        }
        let token = Token::new("sixteen-letters!").unwrap();
        assert!(token.is("sixteen-letters!"));
        assert!(!token.is("sixteen-letters") && !token.is("sixteen-letters!!") && !token.is(""));
        assert!(!format!("{token:?}").contains("sixteen"));
    }

    #[test]
    fn a_session_is_known_by_its_id_until_it_ends_and_there_are_not_too_many() {
        let sessions = Sessions::default();
        let first = sessions.begin("ada".into());
        assert_eq!(sessions.operator(&first).as_deref(), Some("ada"));
        assert_eq!(sessions.operator("ada"), None);
        for number in 0..MOST_SESSIONS {
            sessions.begin(number.to_string());
        }
        assert_eq!(sessions.operator(&first), None);
        assert_eq!(sessions.sessions().len(), MOST_SESSIONS);
        let last = sessions.begin("grace".into());
        sessions.end(&last);
        assert_eq!(sessions.operator(&last), None);
    }

    #[test]
    fn a_session_is_found_among_other_cookies() {
        let mut headers = HeaderMap::new();
        assert_eq!(value("cliquet-1", &headers), None);
        headers.append(
            header::COOKIE,
            "a=1; xcliquet-1=no; cliquet-11=no".parse().unwrap(),
        );
        headers.append(header::COOKIE, "b=2;cliquet-1=here; c=3".parse().unwrap());
        assert_eq!(value("cliquet-1", &headers), Some("here"));
    }
}
