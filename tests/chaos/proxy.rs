//! The network between one worker and one service: a relay on a port of its own that can cut, hold and slow what it carries.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::watch,
    time::sleep,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Carriage {
    Fair,
    /// New connections are reset.
    Refused,
    /// Nothing passes.
    Held,
    /// Each piece takes so long and a millisecond more for so many bytes.
    Slow {
        latency: Duration,
        bytes_per_ms: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    carriage: Carriage,
    /// Connections that are older than the last cut are reset.
    cuts: u64,
}

pub struct Proxy {
    pub port: u16,
    weather: watch::Sender<Weather>,
    /// How often anything was refused, reset, held or slowed.
    felt: Arc<AtomicU64>,
}

impl Proxy {
    /// Relays a free port to `upstream`, a port of this machine.
    pub async fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let weather = watch::Sender::new(Weather {
            carriage: Carriage::Fair,
            cuts: 0,
        });
        let (watched, felt) = (weather.subscribe(), Arc::new(AtomicU64::new(0)));
        let feeling = felt.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, upstream, watched.clone(), feeling.clone()));
            }
        });
        Self {
            port,
            weather,
            felt,
        }
    }

    /// How often a connection has felt its weather, so far.
    pub fn felt(&self) -> u64 {
        self.felt.load(Ordering::Relaxed)
    }

    /// Everything passes.
    pub fn fair(&self) {
        self.weather
            .send_modify(|weather| weather.carriage = Carriage::Fair);
    }

    /// Resets every connection; new ones too, until it is fair again.
    pub fn cut(&self) {
        self.weather.send_modify(|weather| {
            weather.cuts += 1;
            weather.carriage = Carriage::Refused;
        });
    }

    /// Nothing passes until it is fair again.
    pub fn hold(&self) {
        self.weather
            .send_modify(|weather| weather.carriage = Carriage::Held);
    }

    /// Everything takes long.
    pub fn slow(&self, latency: Duration, bytes_per_ms: u64) {
        self.weather.send_modify(|weather| {
            weather.carriage = Carriage::Slow {
                latency,
                bytes_per_ms,
            };
        });
    }
}

async fn relay(
    client: TcpStream,
    upstream: u16,
    mut weather: watch::Receiver<Weather>,
    felt: Arc<AtomicU64>,
) {
    let feel = || felt.fetch_add(1, Ordering::Relaxed);
    let now = *weather.borrow_and_update();
    if now.carriage == Carriage::Refused {
        feel();
        let _ = client.set_zero_linger();
        return;
    }
    if now.carriage == Carriage::Held {
        feel();
    }
    // While nothing passes, a connection is not made either: the client waits for an answer.
    let passes =
        weather.wait_for(|weather| weather.carriage != Carriage::Held || weather.cuts != now.cuts);
    if passes
        .await
        .map_or(true, |weather| weather.cuts != now.cuts)
    {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    // A reset unless both sides say goodbye in order.
    let _ = (client.set_zero_linger(), server.set_zero_linger());
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = async {
        let mut weather = weather.clone();
        if weather
            .wait_for(|weather| weather.cuts != now.cuts)
            .await
            .is_ok()
        {
            feel();
        }
    };
    tokio::select! {
        _ = pump(from_client, to_server, weather.clone(), &felt) => {}
        _ = pump(from_server, to_client, weather.clone(), &felt) => {}
        () = cut => {}
    }
}

/// Carries one direction until either side has ended.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    felt: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let size = from.read(&mut buffer).await?;
        if weather.borrow_and_update().carriage != Carriage::Fair {
            felt.fetch_add(1, Ordering::Relaxed);
        }
        // The end of one side passes no earlier than its bytes.
        let closed = weather
            .wait_for(|weather| weather.carriage != Carriage::Held)
            .await;
        let Ok(carriage) = closed.map(|weather| weather.carriage) else {
            return Ok(());
        };
        if size == 0 {
            // Half a second for what the other side still has to say.
            let _ = to.shutdown().await;
            sleep(Duration::from_millis(500)).await;
            return Ok(());
        }
        if let Carriage::Slow {
            latency,
            bytes_per_ms,
        } = carriage
        {
            sleep(latency + Duration::from_millis(size as u64 / bytes_per_ms.max(1))).await;
        }
        to.write_all(&buffer[..size]).await?;
    }
}
