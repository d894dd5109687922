//! Listening, with limits of its own: axum's server has none, and would let a few slow clients hold it up for ever.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{super::failure::Failure, failure::Problem, patience::Patient};

/// So many connections are open at a time. Streams of events are among them. Where there are more, whoever has waited longest
/// without having been let in gives way; while all are let in, more wait in the system's queue.
const MOST_CONNECTIONS: usize = 300;
/// How long a client may take to send the head of a request; also, how long a connection may idle between two.
const HEAD: Duration = Duration::from_secs(15);
/// How long a client may take to send the body of a request.
const BODY: Duration = Duration::from_secs(10);
/// How long a client may leave unread what it is sent.
const UNREAD: Duration = Duration::from_secs(30);
/// How long a client may take to read an answer, or one event of a stream.
const READ: Duration = Duration::from_secs(300);
/// How long answers that are under way may take when the server ends.
const GOODBYE: Duration = Duration::from_secs(3);
/// The longest head of a request, in bytes: a query and a cookie have room.
const MOST_HEAD_BYTES: usize = 32 * 1024;
/// The longest body of a request, in bytes.
const MOST_BODY_BYTES: usize = 64 * 1024;
/// The longest query, in bytes.
const MOST_QUERY_BYTES: usize = 8 * 1024;

/// Listens at an address.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there, maybe another worker: choose another port, or 0 for a free one"
            }
            io::ErrorKind::PermissionDenied => "choose a port above 1023",
            io::ErrorKind::AddrNotAvailable => "it is none of this machine's addresses",
            _ => "choose another address",
        };
        Failure::failed(format!(
            "HTTP cannot be served at {address}: {error}; {remedy} (--http)"
        ))
    })
}

/// Answers requests until `stop`; then lets those that are under way end, for a few seconds.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let strangers = Arc::new(Strangers::default());
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if places.available_permits() == 0 {
                        strangers.turn_out_the_first();
                    }
                    let Ok(place) = places.clone().acquire_owned().await else {
                        return;
                    };
                    let stranger = Strangers::one_more(&strangers);
                    let attended = attend(stream, router.clone(), stranger, stop.clone());
                    connections.spawn(async move {
                        attended.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Most often there are no more file descriptors: they come back as connections end.
                    warn!(%error, "a connection to the HTTP server could not be accepted");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    };
    let _stopped: Option<()> = stop.run_until_cancelled(accepting).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Connections on which nobody has been let in yet, by their age. Slow ones among them shall not keep everybody else out, and
/// an address tells too little: behind a proxy all have the same.
#[derive(Default)]
struct Strangers {
    waiting: Mutex<BTreeMap<u64, CancellationToken>>,
    last: AtomicU64,
}

impl Strangers {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_more(strangers: &Arc<Self>) -> Stranger {
        let number = strangers.last.fetch_add(1, Ordering::Relaxed);
        let turned_out = CancellationToken::new();
        strangers.waiting().insert(number, turned_out.clone());
        Stranger {
            number,
            turned_out,
            among: strangers.clone(),
        }
    }

    fn turn_out_the_first(&self) {
        if let Some((_, turned_out)) = self.waiting().pop_first() {
            turned_out.cancel();
        }
    }
}

/// One connection among the [`Strangers`], until it is let in or ends.
struct Stranger {
    number: u64,
    turned_out: CancellationToken,
    among: Arc<Strangers>,
}

impl Stranger {
    fn let_in(&self) {
        self.among.waiting().remove(&self.number);
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.let_in();
    }
}

/// Behind the guard: whoever gets here keeps the connection.
pub(super) async fn let_in(request: Request, next: Next) -> Response {
    if let Some(stranger) = request.extensions().get::<Arc<Stranger>>() {
        stranger.let_in();
    }
    next.run(request).await
}

async fn attend(stream: TcpStream, router: Router, stranger: Stranger, stop: CancellationToken) {
    // A part of an answer, such as an event, is not held back for the next.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, UNREAD, READ));
    let turned_out = stranger.turned_out.clone();
    let stranger = Arc::new(stranger);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(stranger.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MOST_HEAD_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = turned_out.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(GOODBYE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended");
    }
}

/// Reads a request's body as a whole before anybody looks at it, and refuses what is too long or too slow.
pub(super) async fn bounded(request: Request, next: Next) -> Response {
    if request
        .uri()
        .query()
        .is_some_and(|query| query.len() > MOST_QUERY_BYTES)
    {
        let sentence = format!("the query is longer than {MOST_QUERY_BYTES} bytes");
        return Problem::new(StatusCode::URI_TOO_LONG, sentence).into_response();
    }
    let (parts, body) = request.into_parts();
    let told = parts.headers.get(header::CONTENT_LENGTH);
    let told = told.and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|bytes| bytes > MOST_BODY_BYTES as u64) {
        return too_long().into_response();
    }
    match timeout(BODY, to_bytes(body, MOST_BODY_BYTES)).await {
        Ok(Ok(bytes)) => {
            next.run(Request::from_parts(parts, Body::from(bytes)))
                .await
        }
        Ok(Err(error)) if is_too_long(&error) => too_long().into_response(),
        Ok(Err(error)) => Problem::bad(format!("the body cannot be read: {error}")).into_response(),
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body has not come within {} s", BODY.as_secs()),
        )
        .into_response(),
    }
}

fn too_long() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is longer than {MOST_BODY_BYTES} bytes"),
    )
}

/// The limit's own type is in a crate that is not named here.
fn is_too_long(error: &axum::Error) -> bool {
    error.to_string().contains("length limit")
}
