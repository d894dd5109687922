//! The HTTP client of the exporter: TLS as everywhere in cliquet, and the cause of a request that failed.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use reqwest::{blocking, redirect};

use super::settings::Settings;
use crate::tls;

/// How an authority is named that the platform does not know.
const HOW_TO_TRUST: &str =
    "if it is to be trusted, name a file with its certificate: OTEL_EXPORTER_OTLP_CERTIFICATE=FILE";

/// Why the last request was not answered: the exporter's own error does not say it.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn tell(&self, sentence: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sentence;
    }
}

#[derive(Debug)]
pub(super) struct Client {
    inner: blocking::Client,
    trouble: Trouble,
}

impl Client {
    /// # Errors
    /// A sentence: there are no certificates to trust, or the given ones cannot be used.
    pub(super) fn new(settings: Settings, trouble: Trouble) -> Result<Self, String> {
        // Only the first of a process counts, and whichever it is serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = blocking::Client::builder()
            .timeout(settings.timeout)
            // The headers are for this address alone.
            .redirect(redirect::Policy::none());
        builder = match settings.authorities {
            Some(authorities) => builder.tls_certs_only(authorities),
            None if settings.endpoint.scheme() == "https" => builder,
            // A machine without any authority may send unencrypted all the same.
            None => builder.tls_certs_only([]),
        };
        if let Some(identity) = settings.identity {
            builder = builder.identity(identity);
        }
        let inner = builder.build().map_err(|error| root(&error))?;
        Ok(Self { inner, trouble })
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'this, 'answer>(&'this self, request: Request<Bytes>) -> Answer<'answer>
    where
        'this: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let answered = self.inner.send_bytes(request).await;
            self.trouble.tell(answered.as_ref().err().map(|error| {
                let error: &(dyn Error + 'static) = error.as_ref();
                tls::refusal(error, HOW_TO_TRUST).unwrap_or_else(|| root(error))
            }));
            answered
        })
    }
}

/// The last cause of an error. Those above it say less, and may have the whole address in them.
fn root(error: &(dyn Error + 'static)) -> String {
    let (mut last, mut causes) = (error, 0);
    while let Some(cause) = last.source() {
        (last, causes) = (cause, causes + 1);
    }
    match (causes, error.downcast_ref::<reqwest::Error>()) {
        (0, Some(error)) if error.is_timeout() => "no answer in time".to_owned(),
        (0, Some(_)) => "the request cannot be sent".to_owned(),
        _ => last.to_string(),
    }
}
