//! Whatever is sent that should not be: a documented refusal, nothing stored, never a 500.

use reqwest::{Method, header};
use serde_json::{Value, json};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::postgres::TestDb;
use crate::harness::sql::{TABLES, rows};
use crate::harness::world::{ADMIN_TOKEN, API_KEY, World, reply};

/// One request and what must come back.
struct Case {
    method: &'static str,
    path: String,
    body: Vec<u8>,
    status: u16,
    /// `code` or `code: param`.
    error: String,
}

fn case(
    method: &'static str,
    path: &str,
    body: impl Into<Vec<u8>>,
    status: u16,
    error: &str,
) -> Case {
    Case { method, path: path.to_owned(), body: body.into(), status, error: error.to_owned() }
}

/// Sends each with the right key and asserts that each is refused as it says, in the documented
/// shape, and that the database is as it was.
async fn assert_refused(world: &World, cases: Vec<Case>) {
    assert_refused_with(world, API_KEY, cases).await;
}

async fn assert_refused_with(world: &World, key: &str, cases: Vec<Case>) {
    let before = world.rows(&TABLES).await;
    let mut wrong = Vec::new();
    for case in cases {
        let sent = String::from_utf8_lossy(&case.body[..case.body.len().min(120)]).into_owned();
        let got = world.call_raw(key, case.method, &case.path, case.body).await;
        let message = got.body["error"]["message"].as_str().unwrap_or_default();
        if (got.status, got.error()) != (case.status, case.error.clone()) || message.is_empty() {
            wrong.push(format!(
                "{} {} {sent}\n  wanted {} {}\n  got {} {}",
                case.method, case.path, case.status, case.error, got.status, got.body
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert_eq!(world.rows(&TABLES).await, before, "something was stored");
}

/// A daemon with one customer, `acme`, who has used 3 runs.
async fn world(db: &TestDb) -> World {
    let world = World::start(db).await;
    world.customer("acme").await;
    world.runs("acme", 3).await;
    world
}

/// A question about `acme` with one field set; text is set as it stands, be it JSON or not.
fn with(field: &str, json: &str) -> String {
    let mut fields = vec![("customer_id", "\"acme\""), ("feature_id", "\"ai_runs\"")];
    fields.retain(|(name, _)| *name != field);
    fields.push((field, json));
    let fields: Vec<_> = fields.iter().map(|(name, json)| format!("\"{name}\": {json}")).collect();
    format!("{{{}}}", fields.join(", "))
}

/// `json` as a string.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// What is no JSON object at all, whatever the call.
fn not_an_object() -> Vec<Vec<u8>> {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let texts = [
        "{",
        "}",
        "nonsense",
        "null",
        "true",
        "7",
        "[]",
        "\"acme\"",
        "{'customer_id': 'acme'}",
        "{\"customer_id\": }",
        "{\"customer_id\" \"acme\"}",
        "{\"customer_id\": \"acme\",}",
        "{} {}",
        "{\"customer_id\": \"acme\n\"}",
        "{\"customer_id\": \"\\x41\"}",
        "// comment\n{}",
        "customer_id=acme&feature_id=ai_runs",
        "<customer_id>acme</customer_id>",
        "\u{feff}{}",
    ];
    let mut bodies: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    bodies.push(with("customer_id", "\"\\ud800\"").into_bytes());
    bodies.push(with("customer_id", "\"\\udc00\\ud800\"").into_bytes());
    bodies.push(with("required_balance", "1e400").into_bytes());
    bodies.push(with("required_balance", "-1e400").into_bytes());
    bodies.push(with("required_balance", "NaN").into_bytes());
    bodies.push(with("required_balance", "01").into_bytes());
    bodies.push(with("required_balance", "0x10").into_bytes());
    bodies.push(with("properties", &deep(200)).into_bytes());
    bodies.push(deep(100_000).into_bytes());
    bodies.push(b"{\"customer_id\": \"\xff\xfe\"}".to_vec());
    bodies.push(b"{\"customer_id\": \"acme\0\"}".to_vec());
    bodies.push(b"\0".to_vec());
    // A compressed body is not unpacked.
    bodies.push(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00".to_vec());
    // UTF-16.
    bodies.push("{}".encode_utf16().flat_map(u16::to_le_bytes).collect());
    bodies
}

/// Fields of both calls whose type is wrong: 400, naming the field.
fn wrong_types(path: &str) -> Vec<Case> {
    let quantity = if path.ends_with("track") { "value" } else { "required_balance" };
    let mut cases = Vec::new();
    for (field, values) in [
        ("customer_id", &["7", "true", "[]", "{}", "[\"acme\"]"] as &[&str]),
        ("feature_id", &["7", "{}"]),
        (quantity, &["\"1\"", "true", "[]", "{\"value\": 1}"]),
        ("idempotency_key", &["7", "[]"]),
        ("entity_id", &["7", "{}"]),
        ("properties", &["7", "\"model\"", "[]"]),
        ("customer_data", &["7", "\"jo@example.com\"", "[]"]),
    ] {
        for value in values {
            cases.push(case("POST", path, with(field, value), 400, &format!("malformed: {field}")));
        }
    }
    for field in ["email", "name"] {
        let data = format!("{{\"{field}\": 7}}");
        let error = format!("malformed: customer_data.{field}");
        cases.push(case("POST", path, with("customer_data", &data), 400, &error));
    }
    cases
}

/// Fields of both calls that are of the right type and have a wrong value: 422, naming the field.
fn wrong_values(path: &str) -> Vec<Case> {
    let quantity = if path.ends_with("track") { "value" } else { "required_balance" };
    let long = |length| quoted(&"x".repeat(length));
    let mut cases = Vec::new();
    for value in [
        "0",
        "-1",
        "1.5",
        "-0",
        "0.999",
        "1000000000.5",
        "1e10",
        "1e-1",
        "1000000001",
        "1000000000000",
        "9223372036854775808",
        "18446744073709551616",
        "-9223372036854775809",
        "1e308",
    ] {
        let error = format!("invalid_value: {quantity}");
        cases.push(case("POST", path, with(quantity, value), 422, &error));
    }
    for (field, values) in [
        ("customer_id", vec![long(0), long(129), long(100_000)]),
        ("feature_id", vec![long(0), long(65)]),
        ("idempotency_key", vec![long(0), long(256)]),
        ("entity_id", vec![long(0), long(129)]),
    ] {
        let unprintable = ["a\0b", "a\nb", "\u{7f}", "é", "\u{430}cme", "a\u{202e}b"].map(quoted);
        for value in values.into_iter().chain(unprintable) {
            let error = format!("invalid_value: {field}");
            cases.push(case("POST", path, with(field, &value), 422, &error));
        }
    }
    for data in [
        json!({"email": "nobody"}),
        json!({"email": ""}),
        json!({"email": "a b@example.com"}),
        json!({"email": "a@b@example.com"}),
        json!({"email": "a\0@example.com"}),
        json!({"email": "a\r\nBcc: eve@example.com"}),
        json!({"email": format!("{}@example.com", "x".repeat(250))}),
    ] {
        let body = with("customer_data", &data.to_string());
        cases.push(case("POST", path, body, 422, "invalid_value: customer_data.email"));
    }
    let name = json!({"name": "x".repeat(201)}).to_string();
    cases.push(case(
        "POST",
        path,
        with("customer_data", &name),
        422,
        "invalid_value: customer_data.name",
    ));
    for properties in
        [json!({"note": "x".repeat(5000)}), json!({"note": "a\0b"}), json!({"a\0b": 1})]
    {
        let body = with("properties", &properties.to_string());
        cases.push(case("POST", path, body, 422, "invalid_value: properties"));
    }
    cases
}

/// Fields that are missing, unknown, or name what is not there.
fn missing_and_unknown(path: &str) -> Vec<Case> {
    let other_calls_field = if path.ends_with("track") { "send_event" } else { "value" };
    vec![
        case("POST", path, "{}", 422, "missing_field: customer_id"),
        case("POST", path, with("customer_id", "null"), 422, "missing_field: customer_id"),
        case("POST", path, r#"{"customer_id": "acme"}"#, 422, "missing_field: feature_id"),
        case("POST", path, with("surprise", "1"), 422, "unknown_field: surprise"),
        case("POST", path, with("Customer_id", "\"acme\""), 422, "unknown_field: Customer_id"),
        case(
            "POST",
            path,
            with(other_calls_field, "1"),
            422,
            &format!("unknown_field: {other_calls_field}"),
        ),
        case(
            "POST",
            path,
            with("customer_data", r#"{"phone": "1"}"#),
            422,
            "unknown_field: customer_data.phone",
        ),
        case("POST", path, with("customer_id", "\"nobody\""), 404, "unknown_customer: customer_id"),
        case("POST", path, with("feature_id", "\"imports\""), 404, "unknown_feature: feature_id"),
        // The refused call must not leave the customer behind.
        case(
            "POST",
            path,
            r#"{"customer_id": "new", "feature_id": "imports", "customer_data": {}, "idempotency_key": "a"}"#,
            404,
            "unknown_feature: feature_id",
        ),
    ]
}

/// Paths that name no customer, or none that could be.
fn bad_paths() -> Vec<Case> {
    let long = format!("/v1/customers/{}", "x".repeat(129));
    let mut cases = Vec::new();
    for method in ["GET", "DELETE", "PUT"] {
        for path in [&long, "/v1/customers/a%00b", "/v1/customers/a%0Ab", "/v1/customers/%C3%A9"] {
            cases.push(case(method, path, "", 422, "invalid_value: customer_id"));
        }
        cases.push(case(method, "/v1/customers/%FF", "", 400, "malformed: customer_id"));
        cases.push(case(method, "/v1/customers/a/b", "", 404, "not_found"));
        cases.push(case(method, "/v1/customers/", "", 404, "not_found"));
        cases.push(case(method, "/v1/customers", "", 404, "not_found"));
    }
    for method in ["GET", "DELETE"] {
        for path in [
            "/v1/customers/nobody",
            "/v1/customers/%61",
            "/v1/customers/a%2Fb",
            "/v1/customers/a%zz",
        ] {
            cases.push(case(method, path, "", 404, "unknown_customer: customer_id"));
        }
    }
    cases
}

both_databases! {
    async fn what_is_not_json_or_not_an_object_is_malformed(db: TestDb) {
        let world = world(&db).await;
        let mut cases = Vec::new();
        for body in not_an_object() {
            cases.push(case("POST", "/v1/check", body.clone(), 400, "malformed"));
            cases.push(case("POST", "/v1/track", body.clone(), 400, "malformed"));
            cases.push(case("PUT", "/v1/customers/acme", body, 400, "malformed"));
        }
        cases.push(case("POST", "/v1/check", "", 400, "malformed"));
        cases.push(case("POST", "/v1/track", "", 400, "malformed"));
        assert_refused(&world, cases).await;
    }

    async fn a_field_that_comes_twice_is_refused(db: TestDb) {
        let world = world(&db).await;
        let twice = r#"{"customer_id": "acme", "feature_id": "ai_runs", "customer_id": "beta"}"#;
        let nested = with("properties", r#"{"model": "a", "deep": {"x": 1, "x": 1}}"#);
        let mut cases = Vec::new();
        for path in ["/v1/check", "/v1/track"] {
            cases.push(case("POST", path, twice, 400, "malformed: customer_id"));
            cases.push(case("POST", path, nested.as_str(), 400, "malformed: properties.deep.x"));
        }
        let events = format!(r#"{{"events": [{}, {}, {twice}]}}"#, with("value", "1"), with("value", "2"));
        cases.push(case("POST", "/v1/track/batch", events, 400, "malformed: events[2].customer_id"));
        let twice = r#"{"name": "a", "name": "b"}"#;
        cases.push(case("PUT", "/v1/customers/acme", twice, 400, "malformed: name"));
        assert_refused(&world, cases).await;
    }

    async fn what_is_no_run_at_all_is_told_its_place_in_the_batch(db: TestDb) {
        let world = world(&db).await;
        let body = json!({"events": [{"customer_id": "acme", "feature_id": "ai_runs"}, 7, "acme"]});
        let told = world.call("POST", "/v1/track/batch", &body).await.ok();
        let results = told["results"].as_array().unwrap();
        assert_eq!((&results[0]["status"], &results[1]["status"]), (&json!(200), &json!(400)));
        assert_eq!(results[1]["error"], json!({
            "code": "malformed", "message": "events[1] must be a JSON object", "param": "events[1]"}));
        assert_eq!(results[2]["error"]["param"], "events[2]");
    }

    async fn a_number_is_whole_however_it_is_written(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        for (value, usage) in [("1.0", 1), ("10e0", 11), ("0.5e1", 16), ("1E2", 116), ("4.000", 120)] {
            let body = with("value", value);
            let tracked = world.call_raw(API_KEY, "POST", "/v1/track", body.into_bytes()).await.ok();
            assert_eq!(tracked["balance"]["usage"], usage, "{value}");
        }
        let body = with("properties", r#"{"input_tokens": 1e3, "output_tokens": 2.0}"#);
        world.call_raw(API_KEY, "POST", "/v1/track", body.into_bytes()).await.ok();
        let tokens = rows(&db.url, "SELECT input_tokens, output_tokens FROM usage_events WHERE input_tokens > 0").await;
        assert_eq!(tokens, rows(&db.url, "SELECT 1000, 2").await);
    }

    async fn the_text_of_an_escape_is_no_nul(db: TestDb) {
        let world = world(&db).await;
        for note in [r"\u0000", r"C:\u0000 and \\u0000"] {
            let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "properties": {"note": note, "list": [note]}});
            world.call("POST", "/v1/track", &body).await.ok();
        }
        let cases = [r#"{"a": [{"b": "x\u0000"}]}"#, r#"{"a": {"\u0000": 1}}"#, r#"{"a": "\\\u0000"}"#]
            .map(|properties| case("POST", "/v1/track", with("properties", properties), 422, "invalid_value: properties"));
        assert_refused(&world, cases.into()).await;
    }

    async fn a_wrong_type_or_value_names_its_field(db: TestDb) {
        let world = world(&db).await;
        let mut cases = Vec::new();
        for path in ["/v1/check", "/v1/track"] {
            cases.extend(wrong_types(path));
            cases.extend(wrong_values(path));
            cases.extend(missing_and_unknown(path));
        }
        for value in ["\"true\"", "1", "[]"] {
            cases.push(case("POST", "/v1/check", with("send_event", value), 400, "malformed: send_event"));
        }
        let behavior = |value| with("overage_behavior", value);
        cases.push(case("POST", "/v1/track", behavior("7"), 400, "malformed: overage_behavior"));
        cases.push(case("POST", "/v1/track", behavior("\"maybe\""), 422, "invalid_value: overage_behavior"));
        assert_refused(&world, cases).await;
    }

    async fn a_customer_is_put_with_sensible_fields_or_not_at_all(db: TestDb) {
        let world = world(&db).await;
        let mut cases = Vec::new();
        for id in ["acme", "new"] {
            let path = format!("/v1/customers/{id}");
            for (body, status, error) in [
                (r#"{"email": 7}"#, 400, "malformed: email"),
                (r#"{"name": ["Jo"]}"#, 400, "malformed: name"),
                (r#"{"stripe_customer_id": 7}"#, 400, "malformed: stripe_customer_id"),
                (r#"{"email": "nobody"}"#, 422, "invalid_value: email"),
                (r#"{"email": "a@b\u0000.example"}"#, 422, "invalid_value: email"),
                (r#"{"stripe_customer_id": ""}"#, 422, "invalid_value: stripe_customer_id"),
                (r#"{"stripe_customer_id": "sub_1"}"#, 422, "invalid_value: stripe_customer_id"),
                (r#"{"stripe_customer_id": "cus_1/../x"}"#, 422, "invalid_value: stripe_customer_id"),
                (r#"{"stripe_customer_id": "cus_\u0000"}"#, 422, "invalid_value: stripe_customer_id"),
                (r#"{"plan_id": "team"}"#, 422, "unknown_field: plan_id"),
                (r#"{"name": "ok", "customer_id": "x"}"#, 422, "unknown_field: customer_id"),
            ] {
                cases.push(case("PUT", &path, body, status, error));
            }
            let name = json!({"name": "é".repeat(201)}).to_string();
            cases.push(case("PUT", &path, name, 422, "invalid_value: name"));
            let stripe_id = json!({"stripe_customer_id": format!("cus_{}", "x".repeat(300))});
            cases.push(case("PUT", &path, stripe_id.to_string(), 422, "invalid_value: stripe_customer_id"));
        }
        assert_refused(&world, cases).await;
    }

    async fn two_customers_cannot_have_one_stripe_customer(db: TestDb) {
        let world = world(&db).await;
        let stripe_id = world.link("beta").await;
        let body = json!({"stripe_customer_id": stripe_id, "name": "new"}).to_string();
        let error = "stripe_customer_taken: stripe_customer_id";
        let cases = ["acme", "new"].map(|id| {
            case("PUT", &format!("/v1/customers/{id}"), body.as_str(), 409, error)
        });
        assert_refused(&world, cases.into()).await;
    }

    async fn a_body_over_the_limit_is_too_large_on_every_route(db: TestDb) {
        let world = world(&db).await;
        let id = |length: usize| with("customer_id", &quoted(&"x".repeat(length)));
        let mut cases = Vec::new();
        for size in [1 << 20, 10_000_000] {
            cases.push(case("POST", "/v1/check", id(size), 413, "too_large"));
            cases.push(case("POST", "/v1/track", id(size), 413, "too_large"));
            cases.push(case("PUT", "/v1/customers/new", id(size), 413, "too_large"));
            cases.push(case("POST", "/webhooks/stripe", id(size), 413, "too_large"));
        }
        // Up to the limit it is the id that is wrong.
        let largest = id((1 << 20) - id(0).len());
        assert_eq!(largest.len(), 1 << 20);
        cases.push(case("POST", "/v1/check", largest, 422, "invalid_value: customer_id"));
        assert_refused(&world, cases).await;
    }

    async fn what_is_hardly_http_gets_a_4xx_or_nothing(db: TestDb) {
        let world = world(&db).await;
        let before = world.rows(&TABLES).await;
        let ask = with("send_event", "true");
        let post = |headers: &str, body: &str| {
            let line = "POST /v1/check HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
            format!("{line}authorization: Bearer {API_KEY}\r\n{headers}\r\n\r\n{body}").into_bytes()
        };
        for (sent, status) in [
            (b"nonsense\r\n\r\n".to_vec(), "400"),
            (b"GET /v1/customers/a\0b HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "400"),
            (b"GET /v1/customers/acme HTTP/9.9\r\nhost: x\r\n\r\n".to_vec(), "400"),
            (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000)).into_bytes(), "4"),
            (post("content-length: -1", &ask), "400"),
            (post("content-length: 1e3", &ask), "400"),
            (post("content-length: 5\r\ncontent-length: 6", &ask), "400"),
            (post("content-length: 99999", &ask), "400"),
            (post("transfer-encoding: chunked", "zz\r\n"), "400"),
            (post("transfer-encoding: chunked", &format!("ffff\r\n{ask}")), "400"),
        ] {
            let mut stream = TcpStream::connect(world.config.listen).await.unwrap();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            // The daemon may cut off a caller that does not speak HTTP or has hung up.
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            let sent = String::from_utf8_lossy(&sent[..sent.len().min(300)]).into_owned();
            assert!(answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")), "{sent}\n{answer}");
        }
        // One byte more than the limit, in chunks of 64 KiB that do not say so beforehand.
        let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
        let chunks = format!("{}1\r\n \r\n0\r\n\r\n", chunk.repeat(16));
        let mut stream = TcpStream::connect(world.config.listen).await.unwrap();
        stream.write_all(&post("transfer-encoding: chunked", &chunks)).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"too_large\""), "{answer}");
        assert_eq!(world.rows(&TABLES).await, before);
        assert_eq!(world.usage("acme").await, 3);
    }

    async fn a_path_that_names_no_customer_is_refused(db: TestDb) {
        let world = world(&db).await;
        assert_refused(&world, bad_paths()).await;
    }

    async fn what_is_not_there_or_takes_another_method_says_so(db: TestDb) {
        let world = world(&db).await;
        let mut cases = vec![
            case("GET", "/", "", 404, "not_found"),
            case("POST", "/v1", "", 404, "not_found"),
            case("POST", "/v1/checks", "", 404, "not_found"),
            case("POST", "/v1/check/", "", 404, "not_found"),
            case("GET", "/admin/api/v1/nothing", "", 404, "not_found"),
        ];
        for (method, path) in [
            ("GET", "/v1/check"), ("PUT", "/v1/check"), ("DELETE", "/v1/track"), ("PATCH", "/v1/track"),
            ("POST", "/v1/customers/acme"), ("PATCH", "/v1/customers/acme"),
            ("GET", "/webhooks/stripe"), ("POST", "/healthz"), ("POST", "/readyz"), ("DELETE", "/metrics"),
            ("PUT", "/upgrade"), ("PUT", "/usage"),
            ("GET", "/admin/api/v1/customers/acme/sync"), ("POST", "/admin/api/v1/audit"),
            ("DELETE", "/admin/api/v1/notices"),
        ] {
            cases.push(case(method, path, "", 405, "method_not_allowed"));
        }
        assert_refused(&world, cases).await;
        let refused = world.http.patch(world.url("/v1/customers/acme")).send().await.unwrap();
        let mut allowed: Vec<_> = refused.headers()["allow"].to_str().unwrap().split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed, ["DELETE", "GET", "HEAD", "PUT"]);
    }

    async fn without_the_right_key_nothing_is_answered(db: TestDb) {
        let world = world(&db).await;
        let before = world.rows(&TABLES).await;
        let ask = with("send_event", "true");
        for (method, path) in [
            (Method::POST, "/v1/check"), (Method::POST, "/v1/track"), (Method::PUT, "/v1/customers/new"),
            (Method::GET, "/v1/customers/acme"), (Method::DELETE, "/v1/customers/acme"),
            (Method::POST, "/admin/api/v1/sync"), (Method::POST, "/admin/api/v1/inbox/evt_1/replay"),
            (Method::POST, "/admin/api/v1/customers/acme/sync"), (Method::GET, "/admin/api/v1/audit"),
            (Method::GET, "/admin/api/v1/notices"), (Method::GET, "/admin/api/v1/inbox"),
            (Method::GET, "/admin/api/v1/outbox"), (Method::GET, "/admin/api/v1/jobs"),
        ] {
            for authorization in [
                None, Some(String::new()), Some("Bearer".to_owned()), Some("Bearer ".to_owned()),
                Some("Bearer wrong-key".to_owned()), Some(format!("Basic {API_KEY}")),
                Some(format!("Bearer {API_KEY}x")), Some(format!("Bearer {}", &API_KEY[1..])),
                Some(API_KEY.to_owned()), Some(format!("Bearer {}", "x".repeat(5000))),
            ] {
                let mut request = world.http.request(method.clone(), world.url(path)).body(ask.clone());
                if let Some(authorization) = &authorization {
                    request = request.header(header::AUTHORIZATION, authorization);
                }
                let response = request.send().await.unwrap();
                assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
                let got = reply(response).await;
                let told = (got.status, got.error());
                assert_eq!(told, (401, "unauthorized".to_owned()), "{method} {path} {authorization:?}");
            }
        }
        let garbled = header::HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap();
        let request = world.http.post(world.url("/v1/check")).header(header::AUTHORIZATION, garbled);
        assert_eq!(request.body(ask).send().await.unwrap().status(), 401);
        assert_eq!(world.rows(&TABLES).await, before);
    }

    async fn the_products_key_opens_no_admin_door_and_the_admins_no_products(db: TestDb) {
        let world = world(&db).await;
        let mut cases = vec![case("POST", "/admin/api/v1/customers/acme/sync", "", 403, "forbidden")];
        for list in ["audit", "notices", "inbox", "outbox", "jobs"] {
            cases.push(case("GET", &format!("/admin/api/v1/{list}"), "", 403, "forbidden"));
        }
        assert_refused(&world, cases).await;
        let ask = with("send_event", "true");
        let cases = vec![
            case("POST", "/v1/check", ask.as_str(), 403, "forbidden"),
            case("POST", "/v1/track", ask.as_str(), 403, "forbidden"),
            case("PUT", "/v1/customers/new", "{}", 403, "forbidden"),
            case("GET", "/v1/customers/acme", "", 403, "forbidden"),
            case("DELETE", "/v1/customers/acme", "", 403, "forbidden"),
        ];
        assert_refused_with(&world, ADMIN_TOKEN, cases).await;
    }

    async fn supports_questions_are_checked_too(db: TestDb) {
        let world = world(&db).await;
        let mut cases = Vec::new();
        for list in ["audit", "notices", "inbox", "outbox"] {
            let long = format!("customer_id={}", "x".repeat(129));
            // Only audit rows are in no state.
            let state = if list == "audit" { "unknown_field: state" } else { "invalid_value: state" };
            for (query, status, error) in [
                ("customer_id=a%00b", 422, "invalid_value: customer_id"),
                ("customer_id=%FF", 422, "invalid_value: customer_id"),
                (long.as_str(), 422, "invalid_value: customer_id"),
                ("state=a%00b", 422, state),
                ("state=nonsense", 422, state),
                ("state=%27%20OR%201=1%20--", 422, state),
                ("surprise=1", 422, "unknown_field: surprise"),
                ("customer_id=acme&customer_id=beta", 400, "malformed: customer_id"),
            ] {
                cases.push(case("GET", &format!("/admin/api/v1/{list}?{query}"), "", status, error));
            }
        }
        for (path, status, error) in [
            ("acme/sync?dry_run=maybe", 422, "invalid_value: dry_run"),
            ("acme/sync?dry_run=1", 422, "invalid_value: dry_run"),
            ("acme/sync?dryrun=true", 422, "unknown_field: dryrun"),
            ("acme/sync?dry_run=true&dry_run=false", 400, "malformed: dry_run"),
            ("nobody/sync", 404, "unknown_customer: customer_id"),
            ("nobody/sync?dry_run=true", 404, "unknown_customer: customer_id"),
            ("a%00b/sync", 422, "invalid_value: customer_id"),
            ("%FF/sync", 400, "malformed: customer_id"),
        ] {
            cases.push(case("POST", &format!("/admin/api/v1/customers/{path}"), "", status, error));
        }
        assert_refused_with(&world, ADMIN_TOKEN, cases).await;
        // A filter that is there and empty is no filter.
        for list in ["audit", "notices", "inbox", "outbox"] {
            assert_eq!(world.list(&format!("/{list}?customer_id=&state=")).await, Vec::<Value>::new());
        }
    }

    async fn a_forged_or_garbled_link_shows_nothing(db: TestDb) {
        let world = world(&db).await;
        let before = world.rows(&TABLES).await;
        let good = world.check("acme").await["upgrade"]["url"].as_str().unwrap().to_owned();
        let token = good.split_once("token=").unwrap().1.to_owned();
        let altered = format!("{}{}", &token[..token.len() - 2], "AA");
        for (path, status) in [
            ("/upgrade".to_owned(), 400), ("/usage".to_owned(), 400), ("/upgrade?token=".to_owned(), 403),
            ("/upgrade?token=%00%FF".to_owned(), 403), (format!("/usage?token={token}"), 403),
            (format!("/upgrade?token={altered}"), 403), (format!("/upgrade?token={}", "v1.".repeat(2000)), 403),
        ] {
            let response = world.http.get(world.url(&path)).send().await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            assert!(!response.text().await.unwrap().contains("runs"), "{path}");
        }
        assert_eq!(world.rows(&TABLES).await, before);
    }
}
