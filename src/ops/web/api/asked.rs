//! What is asked: ids in paths, queries and bodies, each mistake told as a sentence.

use std::fmt;

use axum::{
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use chrono::{DateTime, Utc};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use utoipa::{IntoParams, ToSchema};

use super::super::failure::Problem;
use crate::{
    job::{JobId, JobStatus},
    ledger::Find,
};

/// The id in the path.
pub(super) struct Id(pub(super) JobId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let id = id.ok().and_then(|Path(id)| id.parse().ok());
        id.map(Self).ok_or_else(|| {
            Problem::bad(
                "the path names no job: a job's id is a UUID, such as 0190b5c2-7e1f-7c3a-9d55-0d9c1f0a7b11",
            )
        })
    }
}

/// The query.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(asked)| Self(asked))
            .map_err(|rejection| Problem::bad(format!("the query: {}", rejection.body_text())))
    }
}

/// The body, in JSON. One that is empty is an empty object.
pub(super) struct Said<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Said<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let json = request.headers().get(header::CONTENT_TYPE);
        let json = json.and_then(|kind| kind.to_str().ok());
        let is_json = json.is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/json")
        });
        // `server::bounded` has read it already.
        let body = to_bytes(request.into_body(), usize::MAX).await;
        let body = body.map_err(|error| Problem::bad(error.to_string()))?;
        let mut body = body.trim_ascii();
        if body.is_empty() {
            body = b"{}";
        } else if !is_json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body is JSON: say so with `Content-Type: application/json`",
            ));
        }
        match body {
            b"null" => body = b"{}",
            // What is derived would take a list for an object's fields in their order.
            [b'[', ..] => return Err(Problem::bad("the body: expected an object, found a list")),
            _ => {}
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let said = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| Problem::bad(format!("the body: {error}")))?;
        json.end()
            .map_err(|error| Problem::bad(format!("the body: {error}")))?;
        Ok(Self(said))
    }
}

/// An object, and no list of its fields in their order.
pub(super) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<T, D::Error> {
    let fields = serde_json::Map::deserialize(deserializer)?;
    serde_path_to_error::deserialize(serde_json::Value::Object(fields))
        .map_err(serde::de::Error::custom)
}

/// What is said, and not null: a program that has nothing to say here has lost what it meant.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Text that is said, and not empty either.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text>, D::Error> {
    let text = Text::deserialize(deserializer)?;
    match text.0.is_empty() {
        true => Err(serde::de::Error::custom(EMPTY)),
        false => Ok(Some(text)),
    }
}

/// Statuses, at least one.
fn some_statuses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Statuses, D::Error> {
    let statuses = Statuses::deserialize(deserializer)?;
    match statuses.0.is_empty() {
        true => Err(serde::de::Error::custom(EMPTY)),
        false => Ok(statuses),
    }
}

const EMPTY: &str = "it is empty; leave it out, or say what is meant";

/// A whole number, also one that is written with a point: to JSON `3.0` is 3.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let number = f64::deserialize(deserializer)?;
    let whole = number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX);
    if whole {
        Ok(number as i32)
    } else {
        Err(serde::de::Error::custom(format!(
            "{number} is no whole number, or too large"
        )))
    }
}

/// As [`whole`], or nothing.
pub(super) fn whole_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<i32>, D::Error> {
    #[derive(Deserialize)]
    struct Whole(#[serde(deserialize_with = "whole")] i32);
    let number = Option::<Whole>::deserialize(deserializer)?;
    Ok(number.map(|Whole(number)| number))
}

/// Text as Postgres can hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Text(pub(super) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.contains('\0') {
            return Err(serde::de::Error::custom(
                "it has a NUL in it, which no text in Postgres has",
            ));
        }
        Ok(Self(text))
    }
}

/// Statuses: a list, or one text with commas.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Statuses(Vec<JobStatus>);

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Statuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("statuses of jobs, such as FAILED and RETRYING")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Statuses, E> {
                let words = text
                    .split(',')
                    .map(str::trim)
                    .filter(|word| !word.is_empty());
                let statuses: Result<_, String> = words.map(str::parse).collect();
                statuses.map(Statuses).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Statuses, A::Error> {
                let mut statuses = Vec::new();
                while let Some(status) = list.next_element()? {
                    statuses.push(status);
                }
                Ok(Statuses(statuses))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// Which jobs: all conditions hold. One that is left out is none; one that is empty is refused, since an act on many jobs would
/// be one on many more.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Filter {
    /// Only these statuses.
    #[schema(value_type = Vec<JobStatus>, required = false, min_items = 1)]
    #[serde(deserialize_with = "some_statuses")]
    status: Statuses,
    /// Only this kind.
    #[schema(value_type = String, required = false, min_length = 1, pattern = "^[^\\u0000]*$")]
    #[serde(deserialize_with = "words")]
    kind: Option<Text>,
    /// Only this work queue.
    #[schema(value_type = String, required = false, min_length = 1, pattern = "^[^\\u0000]*$")]
    #[serde(deserialize_with = "words")]
    queue: Option<Text>,
    /// Only jobs that stand at a task of this handler.
    #[schema(value_type = String, required = false, min_length = 1, pattern = "^[^\\u0000]*$")]
    #[serde(deserialize_with = "words")]
    handler: Option<Text>,
    /// Only jobs whose error contains this, in small or capital letters.
    #[schema(value_type = String, required = false, min_length = 1, pattern = "^[^\\u0000]*$")]
    #[serde(deserialize_with = "words")]
    error: Option<Text>,
    /// Only jobs of this group of like failures: the `id` of one of `/api/v1/groups`.
    #[schema(value_type = String, required = false, min_length = 1, pattern = "^[^\\u0000]*$")]
    #[serde(deserialize_with = "words")]
    likeness: Option<Text>,
    /// Created at this time or later.
    #[schema(value_type = DateTime<Utc>, required = false)]
    #[serde(deserialize_with = "said")]
    since: Option<DateTime<Utc>>,
    /// Created before this time.
    #[schema(value_type = DateTime<Utc>, required = false)]
    #[serde(deserialize_with = "said")]
    until: Option<DateTime<Utc>>,
}

impl Filter {
    /// Whether anything is left out.
    pub(super) fn narrows(&self) -> bool {
        self.clone().find() != Find::default()
    }

    pub(super) fn find(self) -> Find {
        Find {
            status: self.status.0,
            kind: given(self.kind),
            queue: given(self.queue),
            handler: given(self.handler),
            error: given(self.error),
            likeness: given(self.likeness),
            since: self.since,
            until: self.until,
            ..Find::default()
        }
    }
}

/// A list's query.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listing {
    /// Only these statuses, separated by commas.
    #[param(value_type = Option<Vec<JobStatus>>, style = Form, explode = false)]
    status: Statuses,
    /// Only this kind.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    kind: Option<Text>,
    /// Only this work queue.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    queue: Option<Text>,
    /// Only jobs that stand at a task of this handler.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    handler: Option<Text>,
    /// Only jobs whose error contains this, in small or capital letters.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    error: Option<Text>,
    /// Only jobs of this group of like failures: the `id` of one of `/api/v1/groups`.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    likeness: Option<Text>,
    /// Created at this time or later.
    since: Option<DateTime<Utc>>,
    /// Created before this time.
    until: Option<DateTime<Utc>>,
    /// Go on behind this place: the `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^(000[0-9a-f]{45})?$")]
    after: Option<String>,
    /// At most so many jobs; 50, if it is not said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

impl Listing {
    pub(super) fn find(self) -> Result<Find, Problem> {
        let after = match self.after.as_deref() {
            None | Some("") => None,
            Some(place) => Some(place.parse().map_err(|error| {
                Problem::bad(format!(
                    "the query: `after` is no place in a list ({error}); it is the `next` of the page before"
                ))
            })?),
        };
        let limit = match self.limit {
            None => 0,
            Some(limit @ 1..=500) => limit,
            Some(limit) => {
                return Err(Problem::bad(format!(
                    "the query: `limit` is {limit}; expected 1 to 500"
                )));
            }
        };
        let filter = Filter {
            status: self.status,
            kind: self.kind,
            queue: self.queue,
            handler: self.handler,
            error: self.error,
            likeness: self.likeness,
            since: self.since,
            until: self.until,
        };
        Ok(Find {
            after,
            limit,
            ..filter.find()
        })
    }
}

/// A query that says nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A query that chooses one work queue.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct OfQueue {
    /// Only this work queue; every queue, if it is not said.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    queue: Option<Text>,
}

impl OfQueue {
    pub(super) fn queue(self) -> Option<String> {
        given(self.queue)
    }
}

/// A query that chooses one work queue, and how much of it.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Groups {
    /// Only this work queue; every queue, if it is not said.
    #[param(value_type = Option<String>, pattern = "^[^\\u0000]*$")]
    queue: Option<Text>,
    /// At most so many groups; 50, if it is not said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

impl Groups {
    pub(super) fn parts(self) -> Result<(Option<String>, u32), Problem> {
        match self.limit.unwrap_or(50) {
            limit @ 1..=500 => Ok((given(self.queue), limit)),
            limit => Err(Problem::bad(format!(
                "the query: `limit` is {limit}; expected 1 to 500"
            ))),
        }
    }
}

/// What a form leaves empty is not given.
fn given(text: Option<Text>) -> Option<String> {
    text.map(|Text(text)| text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<Find, String> {
        let uri = format!("/?{text}").parse().unwrap();
        let Query(listing): Query<Listing> =
            Query::try_from_uri(&uri).map_err(|rejection| rejection.body_text())?;
        listing.find().map_err(|problem| problem.sentence)
    }

    #[test]
    fn a_query_and_a_filter_say_the_same() {
        let query =
            query("status=FAILED,retrying&kind=a%20b&handler=&since=2026-01-02T03:04:05Z").unwrap();
        let filter: Filter = serde_json::from_str(
            r#"{"status": ["FAILED", "RETRYING"], "kind": "a b", "since": "2026-01-02T03:04:05Z"}"#,
        )
        .unwrap();
        assert_eq!(query, filter.find());
        assert_eq!(query.status, [JobStatus::Failed, JobStatus::Retrying]);
        assert_eq!((query.kind.as_deref(), query.handler), (Some("a b"), None));
    }

    #[test]
    fn a_filter_of_a_body_has_no_empty_conditions() {
        let filter = |text: &str| serde_json::from_str::<Filter>(text);
        assert!(!filter("{}").unwrap().narrows());
        assert!(filter(r#"{"kind": " "}"#).unwrap().narrows());
        for field in [
            "status", "kind", "queue", "handler", "error", "likeness", "since", "until",
        ] {
            for nothing in ["\"\"", "null", "[]"] {
                let text = format!(r#"{{"{field}": {nothing}, "kind2": 1}}"#);
                let told = filter(&text).unwrap_err().to_string();
                assert!(!told.contains("kind2"), "{text}: {told}");
            }
        }
    }

    #[test]
    fn a_mistake_in_a_query_is_told() {
        for (text, words) in [
            ("status=LOST", "there is no status \"LOST\""),
            ("limit=0", "`limit` is 0; expected 1 to 500"),
            ("limit=501", "`limit` is 501"),
            ("limit=many", "limit: invalid digit"),
            ("since=yesterday", "since: "),
            ("kind=a%00b", "NUL"),
            ("colour=red", "unknown field `colour`"),
            ("after=%20", "`after` is no place in a list"),
        ] {
            let told = query(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
