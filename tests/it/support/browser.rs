//! A headless Chromium of one's own, driven through WebDriver as people use it: by mouse, by keyboard, in dark and light.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use axum::http::Method;
use fantoccini::{
    Client, ClientBuilder, Locator,
    actions::{InputSource, KeyAction, KeyActions},
    elements::Element,
    key::Key,
    wd::WebDriverCompatibleCommand,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::eventually;

const MISSING: &str = "`deploy/dev test` provides it: apt-get install chromium chromium-driver";

/// A browser with nothing in it; gone at the end, whatever happens.
pub struct Browser {
    driver: Child,
    folder: PathBuf,
    pub client: Client,
}

/// A command that the driver knows and WebDriver's standard does not.
#[derive(Debug)]
struct Extra(&'static str, Value);

impl WebDriverCompatibleCommand for Extra {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.0
        ))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}

/// Begins one; what it says is in `out` and `log`.
fn drive(folder: &Path) -> Child {
    Command::new("chromedriver")
        .args(["--port=0", "--log-level=WARNING"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(folder.join("out")).unwrap())
        .stderr(fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("chromedriver cannot be run ({error}): {MISSING}"))
}

impl Browser {
    pub async fn start() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(Uuid::new_v4().to_string());
        fs::create_dir_all(&folder).unwrap();
        let driver = drive(&folder);
        // Whoever unwinds from here has the processes ended.
        let mut starting = Processes {
            driver: Some(driver),
            folder: folder.clone(),
        };
        let mut arguments = vec![
            format!("--user-data-dir={}", folder.join("profile").display()),
            "--headless=new".to_owned(),
            "--window-size=1280,1000".to_owned(),
            "--lang=en".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--no-first-run".to_owned(),
        ];
        if rustix::process::geteuid().is_root() {
            arguments.push("--no-sandbox".to_owned()); // Chromium's refuses to work for root
        }
        let capabilities = json!({
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!()
        };
        let mut begun = 1;
        let port: u16 = eventually("chromedriver tells its port", async || {
            // It looks for a port that is free for IPv4, and ends when the same is not for IPv6.
            if let Some(status) = starting.driver.as_mut()?.try_wait().unwrap() {
                let told = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
                assert!(
                    begun < 5,
                    "chromedriver ends each time, with {status}: {}{}",
                    told("out"),
                    told("log")
                );
                begun += 1;
                starting.driver = Some(drive(&folder));
            }
            let told = fs::read_to_string(folder.join("out")).ok()?;
            let (_, port) = told.split_once("successfully on port ")?;
            port.split_once('.')?.0.parse().ok()
        })
        .await;
        let url = format!("http://127.0.0.1:{port}");
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&url)
            .await
            .unwrap_or_else(|error| panic!("no browser is started ({error}): {MISSING}"));
        Self {
            driver: starting.driver.take().unwrap(),
            folder,
            client,
        }
    }

    /// Ends the session as a person closes the window; without it, it is ended all the same.
    pub async fn close(self) {
        self.client.clone().close().await.unwrap();
    }

    async fn extra(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Extra(path, body)).await.unwrap()
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.extra(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
        .await
    }

    pub async fn goto(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// `dark` or `light`, as the system's settings say it to a page.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// The size of the screen, in CSS pixels.
    pub async fn screen(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// The element, once it is there.
    pub async fn find(&self, css: &str) -> Element {
        eventually(&format!("the page has {css}"), async || {
            self.client.find(Locator::Css(css)).await.ok()
        })
        .await
    }

    /// Writes into a field.
    pub async fn write(&self, css: &str, text: &str) {
        self.find(css).await.send_keys(text).await.unwrap();
    }

    pub async fn click(&self, css: &str) {
        self.find(css).await.click().await.unwrap();
    }

    /// Waits until an element's text has these words.
    pub async fn says(&self, css: &str, words: &str) {
        let script = "return document.querySelector(arguments[0])?.innerText ?? null";
        let what = format!("{css} says {words:?}");
        eventually(&what, async || {
            let told = self.client.execute(script, vec![json!(css)]).await.ok()?;
            told.as_str()?.contains(words).then_some(())
        })
        .await;
    }

    /// Waits until the tab is called so.
    pub async fn is_titled(&self, words: &str) {
        eventually(&format!("the tab says {words:?}"), async || {
            self.client
                .title()
                .await
                .ok()?
                .contains(words)
                .then_some(())
        })
        .await;
    }

    pub async fn path(&self) -> String {
        self.client.current_url().await.unwrap().path().to_owned()
    }

    /// Presses keys, one after the other, on whatever has the focus.
    pub async fn press(&self, keys: &[Key]) {
        let mut actions = KeyActions::new("keyboard".to_owned());
        for key in keys {
            let value = char::from(*key);
            actions = actions
                .then(KeyAction::Down { value })
                .then(KeyAction::Up { value });
        }
        self.client.perform_actions(actions).await.unwrap();
    }

    /// Presses Tab until an element has the focus; fails when the whole page was passed.
    pub async fn tab_to(&self, css: &str) {
        for _ in 0..100 {
            self.press(&[Key::Tab]).await;
            let there = self
                .client
                .execute(
                    "return document.activeElement?.matches(arguments[0]) ?? false",
                    vec![json!(css)],
                )
                .await;
            if there.unwrap() == true {
                return;
            }
        }
        panic!("Tab does not come to {css}");
    }

    /// What the browser has complained of since it was asked last: errors of scripts, of the network, of the policy.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.extra("se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| format!("{}: {}", entry["source"], entry["message"]))
            .collect()
    }

    /// What axe finds wrong with the page as it is now.
    pub async fn violations(&self) -> Vec<String> {
        self.run(&axe()).await;
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, {resultTypes: ['violations']}).then(
                found => done(found.violations.map(one => `${one.id}: ${one.help}: ` + one.nodes.map(node => node.target.join(' ') + ' ' + node.failureSummary).join(' | '))),
                error => done([String(error)]));";
        let found = self.client.execute_async(script, vec![]).await.unwrap();
        let found = found.as_array().cloned().unwrap_or_else(|| vec![found]);
        found.iter().map(ToString::to_string).collect()
    }

    /// The elements that reach beyond the right edge of the screen.
    pub async fn too_wide(&self) -> Vec<String> {
        let script = "const edge = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= edge) return [];
            return [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > edge + 0.5)
                .map(one => one.outerHTML.slice(0, 120));";
        let found = self.run(script).await;
        found
            .as_array()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

/// The script of axe-core, as `deploy/dev test` has put it below `target/`.
fn axe() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/axe/axe.min.js");
    fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}: `deploy/dev test` provides it", path.display())
    })
}

impl Drop for Browser {
    fn drop(&mut self) {
        end(&mut self.driver, &self.folder);
    }
}

/// The same, for as long as there is no session.
struct Processes {
    driver: Option<Child>,
    folder: PathBuf,
}

impl Drop for Processes {
    fn drop(&mut self) {
        if let Some(driver) = &mut self.driver {
            end(driver, &self.folder);
        }
    }
}

/// Ends the driver and the browser that it started, each by its id: the browser is known by its folder.
fn end(driver: &mut Child, folder: &Path) {
    let _ = driver.kill();
    let _ = driver.wait();
    let own = folder.display().to_string();
    for _ in 0..100 {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours: Vec<i32> = processes
            .filter_map(|process| {
                let id = process.file_name().to_str()?.parse().ok()?;
                let line = fs::read(process.path().join("cmdline")).ok()?;
                String::from_utf8_lossy(&line).contains(&own).then_some(id)
            })
            .collect();
        if ours.is_empty() {
            break;
        }
        for id in ours.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = fs::remove_dir_all(folder);
}
