//! A real Chromium, in which the pages and mails are opened that people open. The scripts that
//! drive and judge it are in `tests/browser/`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A browser with one page, a small phone's in light colours to begin with, and a profile of its
/// own. It is closed, and its profile removed, when this is dropped.
pub struct Browser {
    driver: Arc<Mutex<Driver>>,
}

struct Driver {
    child: Child,
    /// `None` once nothing more is asked.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Browser {
    /// A browser that may ask these origins (`http://127.0.0.1:8080`) and no other.
    ///
    /// # Panics
    /// When node, the packages or Chromium are missing.
    pub fn start(origins: &[&str]) -> Self {
        assert!(
            folder().join("node_modules/puppeteer-core").is_dir(),
            "puppeteer is not installed in tests/browser/node_modules: run scripts/test"
        );
        let mut command = Command::new("node");
        command.arg("drive.mjs").args(origins).current_dir(folder());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("{command:?} does not start ({error}): run scripts/test")
        });
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { driver: Arc::new(Mutex::new(Driver { child, input, output })) }
    }

    /// Opens an address; answers the status.
    pub async fn open(&self, url: &str) -> u16 {
        status(&self.ask(json!({"command": "open", "url": url, "headers": {}})).await)
    }

    /// Opens an address with a key or token in the `Authorization` header; answers the status.
    pub async fn open_as(&self, token: &str, url: &str) -> u16 {
        let headers = json!({"authorization": format!("Bearer {token}")});
        status(&self.ask(json!({"command": "open", "url": url, "headers": headers})).await)
    }

    /// Shows a document that has no address, such as a mail.
    pub async fn show(&self, html: &str) {
        self.open(&format!("data:text/html;charset=utf-8;base64,{}", STANDARD.encode(html))).await;
    }

    /// The text that is visible, a space wherever there is any.
    pub async fn text(&self) -> String {
        let text = self.ask(json!({"command": "text"})).await;
        string(&text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The address of what is shown, as it stands in the address bar.
    pub async fn address(&self) -> String {
        string(&self.ask(json!({"command": "address"})).await)
    }

    /// What is written on the buttons, and on the links that are drawn as one.
    pub async fn buttons(&self) -> Vec<String> {
        strings(&self.ask(json!({"command": "buttons"})).await)
    }

    /// Clicks the one link or button of this name, and waits for the page it leads to, after all
    /// redirects; answers the status.
    pub async fn follow(&self, name: &str) -> u16 {
        status(&self.ask(json!({"command": "follow", "name": name})).await)
    }

    /// Writes into the field with this label.
    pub async fn fill(&self, label: &str, text: &str) {
        self.ask(json!({"command": "fill", "label": label, "text": text})).await;
    }

    /// Everything that was wrong since the last time this was asked (requests to other hosts,
    /// errors in the console, violations of the page's policy), and that is wrong with the page
    /// shown: on a phone and a desktop, in light and dark, by the keyboard, and by what axe finds.
    pub async fn faults(&self) -> Vec<String> {
        strings(&self.ask(json!({"command": "faults"})).await)
    }

    /// Has the driver do one thing, on a thread where it may block: the server that the browser
    /// asks may live in this very runtime.
    async fn ask(&self, command: Value) -> Value {
        let driver = self.driver.clone();
        let asked =
            tokio::task::spawn_blocking(move || driver.lock().expect("sound").ask(&command));
        asked.await.expect("no panic").unwrap_or_else(|error| panic!("the browser: {error}"))
    }
}

impl Driver {
    fn ask(&mut self, command: &Value) -> Result<Value, String> {
        let gone = |error: std::io::Error| format!("{command}: it is gone: {error}");
        let mut line = format!("{command}\n");
        self.input
            .as_mut()
            .expect("open until dropped")
            .write_all(line.as_bytes())
            .map_err(gone)?;
        line.clear();
        self.output.read_line(&mut line).map_err(gone)?;
        let mut answer: Value = serde_json::from_str(&line)
            .map_err(|_| format!("{command}: it answers {line:?}; what it says is above"))?;
        match &answer["error"] {
            Value::Null => Ok(answer["ok"].take()),
            error => Err(format!("{command}: {error}")),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It ends with its input; to wait for it is to leave no browser and no profile behind.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser")
}

fn status(answer: &Value) -> u16 {
    let status = answer.as_u64().and_then(|status| u16::try_from(status).ok());
    status.unwrap_or_else(|| panic!("{answer} is no status"))
}

fn string(answer: &Value) -> String {
    answer.as_str().unwrap_or_else(|| panic!("{answer} is no text")).to_owned()
}

fn strings(answer: &Value) -> Vec<String> {
    answer.as_array().unwrap_or_else(|| panic!("{answer} is no list")).iter().map(string).collect()
}

mod tests {
    use axum::extract::RawQuery;
    use axum::response::Html;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;

    /// A page without a fault, and a way to put one into it.
    fn page(fault: &str) -> String {
        format!(
            "<!doctype html><html lang=\"en\"><title>A page</title>\
             <meta name=\"viewport\" content=\"width=device-width\">{fault}<h1>A page</h1></html>"
        )
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_fault_is_found_and_goes_with_its_page() {
        let browser = Browser::start(&[]);
        browser.show(&page("<p>All is well.</p>")).await;
        assert_eq!(browser.faults().await, [""; 0]);
        for (fault, told) in [
            ("<p style=\"width: 40rem\">Wide.</p>", "phone, light: scrolls sideways by 288 pixels"),
            (
                "<img src=\"http://127.0.0.1:1/x.png\" alt=\"\">",
                "asks another host: GET http://127",
            ),
            ("<script>console.error('boo')</script>", "console: boo"),
            ("<script>throw new Error('bah')</script>", "throws: bah"),
            ("<p style=\"color: #bbb\">Pale.</p>", "desktop, light: color-contrast: <p style"),
            ("<input>", "phone, dark: label: <input>"),
            ("<a href=\"/\" tabindex=\"-1\">On</a>", "the keyboard does not reach <a href=\"/\""),
            (
                "<button style=\"outline: 0\">On</button>",
                "does not show that it has the focus: <button",
            ),
            (
                "<style>@media (width < 999px) { p { display: none } }</style><p>On.</p>",
                "says 2 different",
            ),
            (
                "<meta http-equiv=\"Content-Security-Policy\" content=\"img-src 'none'\"><img src=\"data:,\" alt=\"\">",
                "violates the following Content Security Policy directive",
            ),
        ] {
            browser.show(&page(fault)).await;
            let faults = browser.faults().await;
            assert!(faults.iter().any(|fault| fault.contains(told)), "{fault}: {faults:?}");
        }
        browser.show(&page("<p>All is well.</p>")).await;
        assert_eq!(browser.faults().await, [""; 0]);
    }

    /// A page that sends the browser on by itself.
    fn sent_on(query: Option<String>) -> String {
        let address = format!("/thanks?{}", query.unwrap_or_default());
        page(&format!("<meta http-equiv=\"refresh\" content=\"0; url={address}\">"))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_form_is_filled_in_and_sent_by_its_names() {
        let form = page(
            "<form action=\"/order\"><label>Seats <input name=\"seats\"></label>\
             <button>Order</button></form>\
             <a href=\"/\">Back</a> <a href=\"/\" style=\"background: #eee\">Later</a>",
        );
        let router = axum::Router::new()
            .route("/", get(|| async { Html(form) }))
            .route("/order", get(|RawQuery(query)| async { Html(sent_on(query)) }))
            .route("/thanks", get(|RawQuery(query)| async { query.unwrap_or_default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shop = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });

        let browser = Browser::start(&[&shop]);
        assert_eq!(browser.open(&shop).await, 200);
        assert_eq!(browser.buttons().await, ["Order", "Later"]);
        browser.fill("Seats", "5").await;
        assert_eq!(browser.follow("Order").await, 200);
        assert_eq!(browser.address().await, format!("{shop}/thanks?seats=5"));
        assert_eq!(browser.text().await, "seats=5");
    }
}
