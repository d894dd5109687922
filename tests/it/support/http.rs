//! A client of HTTP for the tests, which sends whatever it is told to; and `cliquet web`, run for one test.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{
    binary::{Binary, Followed},
    eventually,
};

/// The token of the tests' servers.
pub const TOKEN: &str = "a-token-of-the-tests-0123456789";

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body, after this status.
    #[track_caller]
    pub fn with(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        &self.body
    }

    /// The body as JSON, after this status.
    #[track_caller]
    pub fn json(&self, status: u16) -> Value {
        let body = self.with(status);
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The sentence of an error, after this status.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        self.json(status)["error"].as_str().unwrap().to_owned()
    }
}

/// Asks one server; each request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: SocketAddr,
    headers: Vec<(String, String)>,
}

impl Client {
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            headers: Vec::new(),
        }
    }

    /// Sends this header with each request.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// Shows this token.
    pub fn showing(&self, token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {token}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let client = self.with("Content-Type", "application/json");
        client.send("POST", path, body.to_string().as_bytes()).await
    }

    /// As a browser sends a form.
    pub async fn form(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        let body = body.extend_pairs(form).finish();
        let client = self.with("Content-Type", "application/x-www-form-urlencoded");
        client.send("POST", path, body.as_bytes()).await
    }

    pub async fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut request = self.head(method, path);
        if !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        let bytes = [request.as_bytes(), body].concat();
        self.raw(&bytes).await
    }

    /// The head of a request, without the empty line at its end.
    pub fn head(&self, method: &str, path: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !self.headers.iter().any(|(name, _)| name == "Host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    /// Sends these bytes and reads the answer, which may come before all of them are sent.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let (reader, mut writer) = stream.split();
        let sending = async {
            // A server that refuses need not read on.
            let _ = writer.write_all(bytes).await;
        };
        let answer = async { tokio::join!(read(BufReader::new(reader)), sending).0 };
        timeout(Duration::from_secs(30), answer)
            .await
            .expect("no answer within 30 s")
    }

    /// Opens a stream of events.
    pub async fn events(&self, path: &str) -> Events {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{}\r\n", self.head("GET", path));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader).await;
        let kind = headers.iter().find(|(name, _)| name == "content-type");
        assert_eq!(status, 200, "{headers:?}");
        assert_eq!(kind.unwrap().1, "text/event-stream");
        Events {
            reader,
            text: String::new(),
        }
    }
}

async fn head(reader: &mut (impl AsyncBufReadExt + Unpin)) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no answer: {line:?}"));
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return (status, headers);
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

async fn read(mut reader: impl AsyncBufReadExt + Unpin) -> Answer {
    let (status, headers) = head(&mut reader).await;
    let chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let mut body = Vec::new();
    if chunked {
        while let Some(chunk) = chunk(&mut reader).await {
            body.extend(chunk);
        }
    } else {
        // A server that has refused a long body may reset the connection behind its answer.
        let _ = reader.read_to_end(&mut body).await;
    }
    Answer {
        status,
        headers,
        body: String::from_utf8(body).unwrap(),
    }
}

/// The next chunk; none at the end, also when the connection was closed.
async fn chunk(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).await.ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).await.ok()?;
    chunk.truncate(size);
    (size > 0).then_some(chunk)
}

/// A stream of events.
pub struct Events {
    reader: BufReader<TcpStream>,
    text: String,
}

impl Events {
    /// The next event: its name and its data. None when the stream has ended.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        let next = timeout(Duration::from_secs(60), self.read());
        next.await.expect("no event within a minute")
    }

    async fn read(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = event.lines();
                    let found = lines.find_map(|line| line.strip_prefix(name));
                    found.map(|value| value.trim_start().to_owned())
                };
                let (name, data) = (field("event:"), field("data:"));
                self.text = rest.to_owned();
                // Without both it is a comment.
                if let (Some(name), Some(data)) = (name, data) {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let chunk = chunk(&mut self.reader).await?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

/// `cliquet web` on a free port; ended with the test.
pub struct Web {
    pub process: Followed,
    pub client: Client,
    /// Its folder is gone with it.
    _binary: Option<Binary>,
}

impl Web {
    /// With a binary of its own.
    pub async fn of(binary: Binary) -> Self {
        let mut web = Self::start(&binary).await;
        web._binary = Some(binary);
        web
    }

    /// With the binary's settings; the client shows the tests' token.
    pub async fn start(binary: &Binary) -> Self {
        let mut process = binary.follow(&["web", "--http", "127.0.0.1:0", "--json"]);
        let line = process.line().await;
        let line = line.unwrap_or_else(|| panic!("it does not serve: {}", process.said()));
        let told: Value = serde_json::from_str(&line).unwrap();
        let address = told["http"].as_str().unwrap().strip_prefix("http://");
        let client = Client::at(address.unwrap().parse().unwrap()).showing(TOKEN);
        Self {
            process,
            client,
            _binary: None,
        }
    }

    /// Without what the client shows.
    pub fn stranger(&self) -> Client {
        Client::at(self.client.address)
    }
}

/// Where a worker that was started with `--http 127.0.0.1:0` serves, as its log tells.
pub async fn served_by_worker(binary: &Binary) -> Client {
    let address = eventually("the worker serves HTTP", async || {
        let log = binary.written("log").await;
        let told = log.split("http.address").nth(1)?;
        let told = told.trim_start_matches(['=', '"', ':']);
        told.split(['"', ' ', '\n']).next()?.parse().ok()
    })
    .await;
    Client::at(address)
}

/// The body of a request that says why.
pub fn because(reason: &str) -> Value {
    json!({ "reason": reason })
}
