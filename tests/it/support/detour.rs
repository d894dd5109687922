//! A way to the broker that can be cut: what a network does to a connection.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
};
use url::Url;

/// Passes on every connection that is made to it.
pub struct Detour {
    pub amqp_url: String,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    closed: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Detour {
    pub async fn to(amqp_url: &str) -> Self {
        let mut url = Url::parse(amqp_url).unwrap();
        let there = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port()))
            .unwrap();
        let connections = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let closed = Arc::<AtomicBool>::default();
        let accepting = tokio::spawn({
            let (connections, closed) = (connections.clone(), closed.clone());
            async move {
                while let Ok((mut here, _)) = listener.accept().await {
                    let there = there.clone();
                    // Until it is in the list: whoever cuts or closes finds it there.
                    let mut connections = connections.lock().unwrap();
                    if closed.load(Ordering::Relaxed) {
                        continue;
                    }
                    let passing = tokio::spawn(async move {
                        if let Ok(mut there) = TcpStream::connect(there).await {
                            let _ = copy_bidirectional(&mut here, &mut there).await;
                        }
                    });
                    connections.push(passing.abort_handle());
                }
            }
        });
        Self {
            amqp_url: url.to_string(),
            connections,
            closed,
            accepting,
        }
    }

    /// Ends all connections; new ones are passed on.
    pub fn cut(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        connections.iter().for_each(AbortHandle::abort);
    }

    /// Passes on no new ones.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Passes on new ones again.
    pub fn open(&self) {
        self.closed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}
