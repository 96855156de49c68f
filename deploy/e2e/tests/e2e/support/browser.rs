//! A headless browser, controlled by WebDriver.

use std::{env, path::PathBuf, time::Duration};

use garage_stack::{
    ports,
    process::{Launch, Process},
};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::until;

/// How long one answer of the driver may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A running Chromium and its driver.
pub(crate) struct Browser {
    http: Client,
    session: String,
    _driver: Process,
    _chromium: Process,
    _profile: TempDir,
}

/// The path of a program that a system package installed.
fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; install it with deploy/local/install.sh --tests"))
}

impl Browser {
    /// Starts a browser with its own profile, 1280 pixels wide.
    pub(crate) async fn start() -> Self {
        let profile = tempfile::Builder::new().prefix("garage-browser-").tempdir().unwrap();
        let [debug, port] = ports::reserve().unwrap();
        let http = Client::builder().timeout(ANSWER).build().unwrap();
        // The driver does not start Chromium: a child of this process always ends with this process.
        let mut chromium = Launch::new("chromium", program("chromium"), profile.path().join("chromium.log"))
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--hide-scrollbars", "--window-size=1280,900"])
            .arg(format!("--remote-debugging-port={debug}"))
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .env("HOME", profile.path())
            .spawn()
            .unwrap();
        let answers = async |url: String| http.get(url).send().await.is_ok_and(|answer| answer.status().is_success());
        let version = format!("http://127.0.0.1:{debug}/json/version");
        chromium.wait_until("answer", async || answers(version.clone()).await).await.unwrap();
        let mut driver = Launch::new("chromedriver", program("chromedriver"), profile.path().join("driver.log"))
            .arg(format!("--port={port}"))
            .spawn()
            .unwrap();
        let base = format!("http://127.0.0.1:{port}");
        driver.wait_until("answer", async || answers(format!("{base}/status")).await).await.unwrap();
        let options = json!({ "debuggerAddress": format!("127.0.0.1:{debug}") });
        let capabilities = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let mut browser = Self { http, session: base, _driver: driver, _chromium: chromium, _profile: profile };
        let created = browser.command(Method::POST, "session", capabilities).await;
        browser.session = format!("{}/session/{}", browser.session, created["sessionId"].as_str().unwrap());
        browser
    }

    async fn command(&self, method: Method, path: &str, body: Value) -> Value {
        let url = format!("{}/{path}", self.session);
        let answer: Value = self.http.request(method, url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer["value"].get("error").is_none(), "{path}: {}", answer["value"]);
        answer["value"].clone()
    }

    /// Opens a page.
    pub(crate) async fn open(&self, url: &str) {
        self.command(Method::POST, "url", json!({ "url": url })).await;
    }

    /// Runs JavaScript and returns its result.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.command(Method::POST, "execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// The visible text of the first element that matches a selector; empty if there is none.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let found = self.run(&format!("return document.querySelector({})?.innerText ?? ''", json!(selector))).await;
        found.as_str().unwrap().to_owned()
    }

    /// Waits until the text of the first matching element satisfies a condition. Returns this text.
    pub(crate) async fn until(&self, selector: &str, condition: impl Fn(&str) -> bool) -> String {
        let what = format!("the expected text in {selector}");
        until(&what, async || Some(self.text(selector).await).filter(|text| condition(text))).await
    }

    /// Clicks on the first element that matches a selector, as a person would.
    pub(crate) async fn click(&self, selector: &str) {
        let found = self.command(Method::POST, "element", json!({ "using": "css selector", "value": selector })).await;
        let id = found.as_object().and_then(|found| found.values().next()).and_then(Value::as_str).unwrap();
        self.command(Method::POST, &format!("element/{id}/click"), json!({})).await;
    }

    /// Sets the window's size.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        self.protocol(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false }),
        )
        .await;
    }

    /// A screenshot of the whole page: PNG in base64.
    pub(crate) async fn picture(&self) -> String {
        let options = json!({ "format": "png", "captureBeyondViewport": true });
        let created = self.protocol("Page.captureScreenshot", options).await;
        created["data"].as_str().unwrap().to_owned()
    }

    async fn protocol(&self, command: &str, params: Value) -> Value {
        self.command(Method::POST, "goog/cdp/execute", json!({ "cmd": command, "params": params })).await
    }
}
