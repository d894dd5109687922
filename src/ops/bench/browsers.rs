//! Browsers on the page while the worker is busy: each asks as people's do, over HTTP, of a server as people start it.
//!
//! One browser has the overview open and live, as the page's script keeps it; beside it somebody clicks: a list, a job on it,
//! the list's second page, and so on through all kinds of lists.

use std::{
    io,
    process::Stdio,
    time::{Duration, Instant},
};

use reqwest::{Client, Response};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::report::{milliseconds, percentile};
use crate::ops::{Desk, failure::Failure};

/// How long the server has to begin.
const BEGINS: Duration = Duration::from_secs(30);
/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lists that people look at: most are short, and some look for what is not there.
const LISTS: [&str; 8] = [
    "/jobs",
    "/jobs?status=FAILED",
    "/jobs?status=FAILED&status=RETRYING",
    "/jobs?status=PROCESSING",
    "/jobs?kind=cliquet.bench.history.3",
    "/jobs?queue=nobodys",
    "/jobs?handler=nobodys",
    "/jobs?error=the+image+77",
];

/// Browsers that look until they are told to stop.
pub(super) struct Browsers {
    looking: JoinSet<Result<Looks, Failure>>,
    stop: DropGuard,
    server: Child,
}

/// A kind of page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    List,
    Job,
    Groups,
    Overview,
    Workers,
}

/// Which pages came, and how long each took to be there whole.
pub(super) type Looks = Vec<(Page, Duration)>;

/// How long the pages took, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Answers {
    list: Took,
    job: Took,
    groups: Took,
    overview: Took,
    workers: Took,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Took {
    p50: f64,
    p95: f64,
    max: f64,
    answers: usize,
}

impl Browsers {
    /// Starts a server, and so many browsers. Nobody clicks more often than that.
    pub(super) async fn start(
        desk: &Desk,
        browsers: u32,
        click_every: Duration,
    ) -> Result<Self, Failure> {
        let (server, url) = serve(desk).await?;
        let stop = CancellationToken::new();
        let mut looking = JoinSet::new();
        for number in 0..browsers {
            let (browser, stop) = (Browser::new(&url)?, stop.clone());
            looking.spawn(async move {
                // Not all at the same moment.
                let later = click_every.mul_f64(f64::from(number) / f64::from(browsers));
                match stop.run_until_cancelled(sleep(later)).await {
                    Some(()) => browser.look(number as usize, click_every, &stop).await,
                    None => Ok(Looks::new()),
                }
            });
        }
        Ok(Self {
            looking,
            stop: stop.drop_guard(),
            server,
        })
    }

    /// Ends them and their server, and tells which pages came.
    pub(super) async fn looks(self) -> Result<Looks, Failure> {
        let Self {
            mut looking,
            stop,
            mut server,
        } = self;
        drop(stop);
        let mut all = Looks::new();
        while let Some(looks) = looking.join_next().await {
            all.extend(looks.map_err(|_| Failure::failed("a browser broke off"))??);
        }
        let _ = server.kill().await;
        Ok(all)
    }
}

/// The server of this binary, with the settings of this process, at a port of its own. It is gone when it is dropped.
async fn serve(desk: &Desk) -> Result<(Child, String), Failure> {
    #[derive(Deserialize)]
    struct Listening {
        http: String,
    }
    let failed = |error: io::Error| {
        Failure::failed(format!("the benchmark's server cannot be started: {error}"))
    };
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args(["web", "--http", "127.0.0.1:0", "--json"])
        // Only this process knows the port.
        .env_remove("CLIQUET_HTTP_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(file) = &desk.file {
        command.arg("--config").arg(file);
    }
    let mut server = command.spawn().map_err(failed)?;
    let told = server.stdout.take().map(BufReader::new);
    let mut line = String::new();
    if let Some(mut told) = told
        && timeout(BEGINS, told.read_line(&mut line)).await.is_err()
    {
        return Err(Failure::failed(format!(
            "the benchmark's server does not begin within {} s",
            BEGINS.as_secs()
        )));
    }
    match serde_json::from_str::<Listening>(&line) {
        Ok(listening) => Ok((server, listening.http)),
        Err(_) => Err(Failure::failed(
            "the benchmark's server does not begin; it says above why",
        )),
    }
}

struct Browser {
    client: Client,
    url: String,
}

impl Browser {
    fn new(url: &str) -> Result<Self, Failure> {
        // It wants to know how TLS would be spoken.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().tls_certs_only([]).no_proxy().build();
        Ok(Self {
            client: client.map_err(|error| Failure::failed(format!("no browser: {error}")))?,
            url: url.to_owned(),
        })
    }

    async fn look(
        self,
        first: usize,
        click_every: Duration,
        stop: &CancellationToken,
    ) -> Result<Looks, Failure> {
        let (mut live, mut clicks) = (Looks::new(), Looks::new());
        let looking = async {
            tokio::try_join!(
                self.watch(&mut live),
                self.click(&mut clicks, first, click_every)
            )
        };
        if let Some(Err(failure)) = stop.run_until_cancelled(looking).await {
            return Err(failure);
        }
        live.extend(clicks);
        Ok(live)
    }

    /// The overview, as `page.js` keeps it: an event is a sign to look once more, after a pause.
    async fn watch(&self, looks: &mut Looks) -> Result<(), Failure> {
        let began = Instant::now();
        let page = self.page(looks, Page::Overview, "/").await?;
        let least = attribute(&page, "data-pause=\"").and_then(|pause| pause.parse().ok());
        let pause = |took: Duration| Duration::from_millis(least.unwrap_or(0)).max(took * 3);
        sleep(pause(began.elapsed())).await;
        let broken =
            |error| Failure::failed(format!("the benchmark's server tells no more: {error}"));
        // A stream that has gone on for an hour ends, and the page's script asks for another.
        loop {
            let mut events = self.get("/api/v1/events").await?;
            while events.chunk().await.map_err(broken)?.is_some() {
                let began = Instant::now();
                self.page(looks, Page::Overview, "/").await?;
                sleep(pause(began.elapsed())).await;
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// One list after the other, each from another place in the round.
    async fn click(
        &self,
        looks: &mut Looks,
        first: usize,
        click_every: Duration,
    ) -> Result<(), Failure> {
        for round in first.. {
            let groups = self.page(looks, Page::Groups, "/groups").await?;
            sleep(click_every).await;
            let like = attribute(&groups, "href=\"/jobs?likeness=")
                .map(|likeness| format!("/jobs?likeness={likeness}"));
            let lists = LISTS.map(str::to_owned).into_iter().chain(like);
            let lists: Vec<_> = lists.collect();
            for step in 0..lists.len() {
                let mut path = Some(lists[(round + step) % lists.len()].clone());
                for _ in 0..2 {
                    let Some(list) = path else { break };
                    let page = self.page(looks, Page::List, &list).await?;
                    sleep(click_every).await;
                    if let Some(job) = attribute(&page, "href=\"/jobs/") {
                        self.page(looks, Page::Job, &format!("/jobs/{job}")).await?;
                        sleep(click_every).await;
                    }
                    path = further(&page);
                }
            }
            self.page(looks, Page::Workers, "/workers").await?;
            sleep(click_every).await;
        }
        Ok(())
    }

    async fn page(&self, looks: &mut Looks, page: Page, path: &str) -> Result<String, Failure> {
        let began = Instant::now();
        let whole = async { self.get(path).await?.text().await.map_err(unanswered(path)) };
        let Ok(text) = timeout(PATIENCE, whole).await else {
            return Err(Failure::failed(format!(
                "the benchmark's server does not answer {path} within {} s",
                PATIENCE.as_secs()
            )));
        };
        looks.push((page, began.elapsed()));
        text
    }

    async fn get(&self, path: &str) -> Result<Response, Failure> {
        let asked = self.client.get(format!("{}{path}", self.url)).send();
        let answer = asked.await.map_err(unanswered(path))?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(Failure::failed(format!(
                "the benchmark's server answers {status} to {path}"
            ))),
        }
    }
}

fn unanswered(path: &str) -> impl Fn(reqwest::Error) -> Failure + '_ {
    move |error| {
        Failure::failed(format!(
            "the benchmark's server does not answer {path}: {error}"
        ))
    }
}

/// What stands behind these words, up to the quote that ends it.
fn attribute<'p>(page: &'p str, words: &str) -> Option<&'p str> {
    page.split_once(words)?.1.split('"').next()
}

/// The list's next page, if there is one.
fn further(page: &str) -> Option<String> {
    let links = page.split("href=\"").skip(1);
    let mut links = links.filter_map(|link| link.split('"').next());
    let link = links.find(|link| link.starts_with("/jobs?") && link.contains("after="))?;
    Some(link.replace("&amp;", "&"))
}

impl Answers {
    pub(super) fn of(looks: &Looks) -> Self {
        let took = |page| {
            let of_page = looks.iter().filter(|(looked, _)| *looked == page);
            let mut took: Vec<_> = of_page.map(|(_, took)| *took).collect();
            took.sort_unstable();
            Took {
                p50: milliseconds(percentile(&took, 0.50)),
                p95: milliseconds(percentile(&took, 0.95)),
                max: milliseconds(percentile(&took, 1.0)),
                answers: took.len(),
            }
        };
        Self {
            list: took(Page::List),
            job: took(Page::Job),
            groups: took(Page::Groups),
            overview: took(Page::Overview),
            workers: took(Page::Workers),
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        [
            ("list", &self.list),
            ("job", &self.job),
            ("groups", &self.groups),
            ("overview", &self.overview),
            ("workers", &self.workers),
        ]
        .map(|(what, took)| {
            format!(
                "{what:<11} p50 {:.1} ms, p95 {:.1} ms, at most {:.1} ms, of {} pages",
                took.p50, took.p95, took.max, took.answers
            )
        })
        .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_as_the_page_writes_them() {
        let page = r#"<a href="/jobs?status=FAILED">1</a><a href="/jobs/7">7</a><a href="/jobs?status=FAILED&amp;after=ab">next</a>"#;
        assert_eq!(attribute(page, "href=\"/jobs/"), Some("7"));
        assert_eq!(
            further(page).as_deref(),
            Some("/jobs?status=FAILED&after=ab")
        );
        assert_eq!(further("<a href=\"/jobs\">all</a>"), None);
    }
}
