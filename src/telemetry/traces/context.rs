//! What a trace is continued by: W3C's `traceparent` and `tracestate`, in the headers of messages and in the environment of
//! programs.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::broker::Letter;

/// What W3C asks everyone to pass on, in bytes; a longer `tracestate` is left out.
const LONGEST_STATE: usize = 512;

/// The place in a trace, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// W3C's `traceparent`: `00-TRACE-SPAN-FLAGS`.
    pub traceparent: String,
    /// W3C's `tracestate`, when there is one.
    pub tracestate: Option<String>,
}

impl Place {
    /// The present span's, when a layer of `tracing-opentelemetry` collects it.
    pub fn here() -> Option<Self> {
        Self::of(&Span::current().context())
    }

    /// What this process was given by the one that started it: the variables `TRACEPARENT` and `TRACESTATE`. Malformed ones
    /// count as missing.
    pub fn given() -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok();
        let (traceparent, tracestate) = (variable("TRACEPARENT")?, variable("TRACESTATE"));
        let given = remote(|name| match name {
            TRACEPARENT => Some(&traceparent),
            _ => tracestate.as_deref(),
        });
        Self::of(&given?)
    }

    pub(super) fn of(context: &Context) -> Option<Self> {
        let mut place = Self::default();
        TraceContextPropagator::new().inject_context(context, &mut place);
        (!place.traceparent.is_empty()).then_some(place)
    }
}

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

impl Injector for Place {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.traceparent = value,
            TRACESTATE if !value.is_empty() => self.tracestate = Some(value),
            _ => {}
        }
    }
}

/// The span that headers name, as a parent; nothing for those that are missing or malformed.
pub(super) fn remote<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Context> {
    struct Headers<'a>(&'a str, Option<&'a str>);
    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            match key {
                TRACEPARENT => Some(self.0),
                TRACESTATE => self.1,
                _ => None,
            }
        }

        fn keys(&self) -> Vec<&str> {
            vec![TRACEPARENT, TRACESTATE]
        }
    }
    let traceparent = header(TRACEPARENT).filter(|text| well_formed(text))?;
    // It goes into the environment of programs, where a NUL would keep them from starting.
    let tracestate = header(TRACESTATE).filter(|state| {
        state.len() <= LONGEST_STATE && state.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    });
    let headers = Headers(traceparent, tracestate);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    is_one(&context).then_some(context)
}

/// Whether the parts have their lengths, which the SDK does not look at: it would take `00-1-2-01`.
fn well_formed(traceparent: &str) -> bool {
    let mut parts = traceparent.split('-');
    [2, 32, 16, 2].into_iter().all(|length| {
        let part = parts.next().unwrap_or_default();
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Whether a context is that of a span.
pub(super) fn is_one(context: &Context) -> bool {
    context.span().span_context().is_valid()
}

/// Ids of the present span's trace and of itself, for log lines; nothing outside of one.
pub(in crate::telemetry) fn ids() -> Option<(String, String)> {
    let ids = |span: &SpanContext| (span.trace_id().to_string(), span.span_id().to_string());
    Context::map_current(|context| is_one(context).then(|| ids(context.span().span_context())))
}

/// A letter that carries a place on, in place of what it has.
pub(super) fn carry(letter: Letter, place: &Place) -> Letter {
    letter.traced(&place.traceparent, place.tracestate.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(traceparent: &str, tracestate: Option<&str>) -> Option<Place> {
        let context = remote(|name| match name {
            TRACEPARENT => Some(traceparent),
            _ => tracestate,
        });
        Place::of(&context?)
    }

    #[test]
    fn what_is_well_formed_is_passed_on() {
        let place = read(GOOD, Some("shop=1,x=2")).unwrap();
        assert_eq!(place.traceparent, GOOD);
        assert_eq!(place.tracestate.as_deref(), Some("shop=1,x=2"));
        assert_eq!(read(GOOD, None).unwrap().tracestate, None);
        // A later version may have more parts.
        let later = format!("01{}-more", &GOOD[2..]);
        assert_eq!(read(&later, None).unwrap().traceparent, GOOD);
    }

    #[test]
    fn what_is_malformed_counts_as_missing() {
        let zeros = "0".repeat(32);
        let long = format!("{GOOD}{}", "0".repeat(100_000));
        for bad in [
            "",
            "-",
            "----",
            "nonsense",
            "00-1-2-01",
            &GOOD[..54],
            &GOOD.to_uppercase(),
            &GOOD.replace('b', "g"),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &zeros),
            &format!("{GOOD}-more"),
            &format!("ff{}", &GOOD[2..]),
            &format!("é{}", &GOOD[2..]),
            &long,
        ] {
            assert_eq!(read(bad, None), None, "{bad:.80}");
        }
    }

    #[test]
    fn a_state_that_is_malformed_is_left_out_alone() {
        for bad in [
            "nonsense",
            "a=1\0",
            "a=é",
            &format!("a={}", "1".repeat(600)),
        ] {
            let place = read(GOOD, Some(bad)).unwrap();
            assert_eq!((place.traceparent.as_str(), place.tracestate), (GOOD, None));
        }
    }
}
