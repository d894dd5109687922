//! The broker as the harness uses it: publishing with confirms, looking at queues, and what an operator does in the
//! management page.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// A client that connects again by itself. One publish at a time.
pub struct Rabbit {
    url: String,
    open: Option<(Connection, Channel)>,
}

impl Rabbit {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            open: None,
        }
    }

    /// One attempt to have a channel in confirm mode.
    async fn channel(&mut self) -> Result<Channel, lapin::Error> {
        if let Some((_, channel)) = &self.open
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let connection = match self.open.take() {
            Some((connection, _)) if connection.status().connected() => connection,
            _ => Connection::connect(&self.url, ConnectionProperties::default()).await?,
        };
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        self.open = Some((connection, channel.clone()));
        Ok(channel)
    }

    /// Whether its connection stands.
    pub fn is_connected(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|(connection, _)| connection.status().connected())
    }

    /// Whether this one publish was confirmed and not returned.
    pub async fn publish_once(
        &mut self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> bool {
        let published = async {
            let mandatory = BasicPublishOptions {
                mandatory: true,
                ..Default::default()
            };
            let channel = self.channel().await?;
            let confirm = channel.basic_publish(
                exchange.into(),
                key.into(),
                mandatory,
                body,
                properties.with_delivery_mode(2),
            );
            confirm.await?.await
        };
        // Not long: the client does not notice a broker that goes away in the midst of its greeting.
        match timeout(Duration::from_secs(4), published).await {
            Ok(Ok(confirmation)) => confirmation == Confirmation::Ack(None),
            _ => {
                self.open = None;
                false
            }
        }
    }

    /// Ready messages and consumers of a queue; nothing when it is not there or the broker is away.
    pub async fn queue(&mut self, name: &str) -> Option<(u32, u32)> {
        let asked = async {
            let channel = self.channel().await?;
            let passive = QueueDeclareOptions::durable().passive();
            channel
                .queue_declare(name.into(), passive, FieldTable::default())
                .await
        };
        match timeout(Duration::from_secs(10), asked).await {
            Ok(Ok(queue)) => Some((queue.message_count(), queue.consumer_count())),
            // A refusal closes the channel, and the next call opens another.
            _ => {
                self.open = None;
                None
            }
        }
    }

    /// The exchange that some publishers use, bound to the queue; whether both are there now.
    pub async fn bind(&mut self, exchange: &str, queue: &str) -> bool {
        let bound = async {
            let channel = self.channel().await?;
            let durable = ExchangeDeclareOptions {
                durable: true,
                ..Default::default()
            };
            channel
                .exchange_declare(
                    exchange.into(),
                    ExchangeKind::Direct,
                    durable,
                    FieldTable::default(),
                )
                .await?;
            channel
                .queue_bind(
                    queue.into(),
                    exchange.into(),
                    queue.into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
        };
        let bound = matches!(timeout(Duration::from_secs(10), bound).await, Ok(Ok(())));
        if !bound {
            self.open = None;
        }
        bound
    }

    /// Takes every message out of a queue.
    pub async fn drain(&mut self, queue: &str) -> Vec<(Vec<u8>, BasicProperties)> {
        let channel = self.channel().await.unwrap();
        all(&channel, queue, true).await.unwrap()
    }

    /// Takes every message that waits in a queue and acknowledges none: they go back when this client is dropped, and
    /// nobody else has them meanwhile. Nothing, when a connection that took some before is lost, or there is none.
    pub async fn take(&mut self, queue: &str) -> Option<Vec<(Vec<u8>, BasicProperties)>> {
        let taken = async {
            let channel = match &self.open {
                Some((_, channel)) => channel.clone(),
                None => self.channel().await?,
            };
            all(&channel, queue, false).await
        };
        timeout(Duration::from_secs(10), taken).await.ok()?.ok()
    }
}

async fn all(
    channel: &Channel,
    queue: &str,
    no_ack: bool,
) -> Result<Vec<(Vec<u8>, BasicProperties)>, lapin::Error> {
    let mut all = Vec::new();
    while let Some(message) = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack })
        .await?
    {
        all.push((message.delivery.data, message.delivery.properties));
    }
    Ok(all)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// A whole number in a header.
pub fn whole(properties: &BasicProperties, name: &str) -> Option<i64> {
    match header(properties, name)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        _ => None,
    }
}

/// A text in a header; empty where there is none.
pub fn says(properties: &BasicProperties, name: &str) -> String {
    match header(properties, name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}

/// RabbitMQ's management API at `host:port`.
#[derive(Clone)]
pub struct Management(pub String);

impl Management {
    /// One request as guest; the answer's status and body.
    async fn ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let asked = async {
            let mut stream = TcpStream::connect(&self.0).await.ok()?;
            let request = format!(
                "{method} {path} HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\nContent-Length: 0\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.ok()?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let status = head.split(' ').nth(1)?.parse().ok()?;
            Some((status, body.to_owned()))
        };
        timeout(Duration::from_secs(10), asked).await.ok()?
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let (status, body) = self.ask("GET", path).await?;
        (status == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// The answer's status, when there is one.
    async fn delete(&self, parts: &[&str]) -> Option<u16> {
        let mut url = url::Url::parse("http://broker/").unwrap();
        url.path_segments_mut().unwrap().clear().extend(parts);
        let (status, _) = self.ask("DELETE", url.path()).await?;
        Some(status)
    }

    /// Closes the connections of a worker that serve `purpose`; how many there were. The list is as old as a second.
    pub async fn close_connections(&self, worker: &str, purpose: &str) -> usize {
        let listed = self.get("/api/connections?columns=name,client_properties");
        let connections = listed.await.unwrap_or_default();
        let mut closed = 0;
        for connection in connections.as_array().into_iter().flatten() {
            let called = connection["client_properties"]["connection_name"]
                .as_str()
                .unwrap_or_default();
            let name = connection["name"].as_str().unwrap_or_default();
            if called.contains(&format!(" {worker}@"))
                && called.contains(&format!("({purpose})"))
                && self.delete(&["api", "connections", name]).await == Some(204)
            {
                closed += 1;
            }
        }
        closed
    }

    pub async fn delete_binding(&self, exchange: &str, queue: &str) -> bool {
        self.delete(&["api", "bindings", "/", "e", exchange, "q", queue, queue])
            .await
            == Some(204)
    }

    /// Whether it is deleted for sure: an answer that is lost is asked for again.
    pub async fn delete_queue(&self, queue: &str) -> bool {
        let mut unsure = false;
        for _ in 0..5 {
            match self.delete(&["api", "queues", "/", queue]).await {
                Some(204) => return true,
                Some(404) => return unsure,
                _ => unsure = true,
            }
            sleep(Duration::from_millis(200)).await;
        }
        panic!("RabbitMQ does not tell whether the queue {queue} is deleted");
    }

    /// Messages in a queue that are at a worker.
    pub async fn unacknowledged(&self, queue: &str) -> Option<u64> {
        let queue = self.get(&format!("/api/queues/%2F/{queue}")).await?;
        queue["messages_unacknowledged"].as_u64()
    }
}

/// Asks again and again, for at most so long.
pub async fn within<T>(
    most: Duration,
    what: &str,
    mut question: impl AsyncFnMut() -> Option<T>,
) -> T {
    let asked = async {
        loop {
            if let Some(answer) = question().await {
                return answer;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    match timeout(most, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within {most:?}: {what}"),
    }
}
