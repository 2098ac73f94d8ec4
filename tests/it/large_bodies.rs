//! Large bodies have a fixed number of seats, so that nobody's slowness costs the others memory.
//!
//! Each slow caller asks to be told when its body is wanted (`Expect: 100-continue`): so a story
//! knows, without waiting, whether it got a seat or was sent away.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::process::wait_for;
use crate::harness::webhooks::{event, sign};
use crate::harness::world::{API_KEY, WEBHOOK_SECRET, World};

/// How many large bodies are read at a time, of strangers and of the product each.
const SEATS: usize = 48;
/// The largest body that needs no seat.
const SMALL: usize = 16 << 10;
/// Longer than a caller may take to send its body.
const TOO_LONG: Duration = Duration::from_secs(31);

/// A caller that has sent its headers.
struct Caller(TcpStream);

impl Caller {
    async fn begins(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// With a body of so many bytes, of which none is sent before it is asked for.
    async fn announces(world: &World, path: &str, authority: &str, bytes: usize) -> Self {
        let headers = format!("{authority}\r\nexpect: 100-continue\r\ncontent-length: {bytes}");
        Self::begins(world.config.listen, path, &headers).await
    }

    /// The head of the next answer, in small letters: `100` if the body is wanted. What is left of
    /// the answer before is passed over.
    async fn is_told(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("the daemon answers"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        head.split_once("http/1.1 ").expect("HTTP").1.to_owned()
    }
}

/// What a stranger sends who knows what Stripe's signatures look like.
fn forged(world: &World) -> String {
    format!("stripe-signature: {}", sign("whsec_of_nobody", world.now(), b""))
}

fn key() -> String {
    format!("authorization: Bearer {API_KEY}")
}

/// One after the other begins a body of 1 MiB; those who got a seat, and what the others were told.
async fn crowd(world: &World, path: &str, authority: &str) -> (Vec<Caller>, Vec<String>) {
    let (mut seated, mut sent_away) = (Vec::new(), Vec::new());
    for _ in 0..SEATS + 12 {
        let mut caller = Caller::announces(world, path, authority, 1 << 20).await;
        match caller.is_told().await {
            told if told.starts_with("100") => {
                caller.0.write_all(&[b' '; 20 << 10]).await.unwrap();
                seated.push(caller);
            }
            told => sent_away.push(told),
        }
    }
    (seated, sent_away)
}

/// Whether there is a seat, asked for until there is.
async fn a_seat_comes_back(world: &World, path: &str, authority: &str) {
    wait_for("a seat comes back", async || {
        let mut caller = Caller::announces(world, path, authority, SMALL + 1).await;
        caller.is_told().await.starts_with("100").then_some(())
    })
    .await;
}

/// An event of Stripe's with so many bytes of padding.
async fn event_is_taken(world: &World, id: &str, padding: usize) -> u16 {
    let object = json!({"id": "in_1", "object": "invoice", "padding": "x".repeat(padding)});
    world.deliver(&event(id, "invoice.paid", &object)).await.status
}

both_databases! {
    async fn strangers_with_slow_large_bodies_stop_neither_checks_nor_small_webhooks(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (seated, sent_away) = crowd(&world, "/webhooks/stripe", &forged(&world)).await;
        assert_eq!((seated.len(), sent_away.len()), (SEATS, 12));
        assert!(sent_away.iter().all(|told| told.starts_with("503") && told.contains("retry-after: 1")), "{sent_away:?}");
        assert_eq!(event_is_taken(&world, "evt_small", 100).await, 200);
        assert_eq!(event_is_taken(&world, "evt_large", 2 * SMALL).await, 503);
        assert_eq!(world.check("acme").await["allowed"], true);
        a_seat_comes_back(&world, "/v1/track/batch", &key()).await;
        drop(seated);
        a_seat_comes_back(&world, "/webhooks/stripe", &forged(&world)).await;
        assert_eq!(event_is_taken(&world, "evt_large", 2 * SMALL).await, 200);
    }

    async fn the_products_slow_large_bodies_stop_neither_its_checks_nor_stripe(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let (mut seated, sent_away) = crowd(&world, "/v1/track/batch", &key()).await;
        assert_eq!((seated.len(), sent_away.len()), (SEATS, 12));
        let large = vec![b' '; 2 * SMALL];
        let refused = world.call_raw(API_KEY, "PUT", "/v1/customers/acme", large).await;
        assert_eq!((refused.status, refused.error()), (503, "overloaded".to_owned()));
        assert_eq!(world.check("acme").await["allowed"], true);
        assert_eq!(event_is_taken(&world, "evt_large", 2 * SMALL).await, 200);
        world.clock.advance(TOO_LONG);
        for caller in &mut seated {
            assert!(caller.is_told().await.starts_with("408"));
        }
        a_seat_comes_back(&world, "/v1/track/batch", &key()).await;
    }

    async fn a_body_that_does_not_say_its_length_needs_a_seat_when_it_grows_large(db: TestDb) {
        let world = World::start(&db).await;
        let (_seated, _) = crowd(&world, "/v1/track/batch", &key()).await;
        let headers = format!("{}\r\ntransfer-encoding: chunked", key());
        let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", " ".repeat(bytes));
        for (bytes, told) in [(SMALL, "400"), (SMALL + 1, "503")] {
            let mut caller = Caller::begins(world.config.listen, "/v1/track/batch", &headers).await;
            let body = format!("{}{}0\r\n\r\n", chunk(SMALL / 2), chunk(bytes - SMALL / 2));
            caller.0.write_all(body.as_bytes()).await.unwrap();
            assert!(caller.is_told().await.starts_with(told), "{bytes} bytes");
        }
    }

    async fn what_cannot_be_stripes_is_refused_before_its_body_is_read(db: TestDb) {
        let mut world = World::start(&db).await;
        for header in ["x: y", "stripe-signature: nonsense", "stripe-signature: t=1", "stripe-signature: v1=ab"] {
            let mut caller = Caller::announces(&world, "/webhooks/stripe", header, 1000).await;
            assert!(caller.is_told().await.starts_with("400"), "{header}");
        }
        let mut caller = Caller::announces(&world, "/webhooks/stripe", &forged(&world), (1 << 20) + 1).await;
        assert!(caller.is_told().await.starts_with("413"));
        world.restart_with(&[("STRIPE_WEBHOOK_SECRET", "")]).await;
        let genuine = format!("stripe-signature: {}", sign(WEBHOOK_SECRET, world.now(), b""));
        let mut caller = Caller::announces(&world, "/webhooks/stripe", &genuine, 1000).await;
        assert!(caller.is_told().await.starts_with("503"));
    }

    async fn whoever_is_refused_may_send_its_body_to_the_end_and_ask_again(db: TestDb) {
        let world = World::start(&db).await;
        let headers = format!("x: y\r\ncontent-length: {}", 1 << 20);
        let mut caller = Caller::begins(world.config.listen, "/webhooks/stripe", &headers).await;
        assert!(caller.is_told().await.starts_with("400"));
        caller.0.write_all(&vec![b' '; 1 << 20]).await.unwrap();
        caller.0.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // What comes before the next head is the body of the first refusal.
        let told = caller.is_told().await;
        assert!(told.starts_with("200"), "{told}");
    }
}
