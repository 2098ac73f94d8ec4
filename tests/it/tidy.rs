//! Holds what ARCHITECTURE.md promises about the source: the layers, who may name which library,
//! the limits, and that the documents name only files that exist.
//!
//! Each rule is a function from a path and its text to the faults found, so that the tests below
//! can plant a fault in a string and see it found. What the rules do not see is stated at each.

pub mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use source::{Token, closing, rust_files, tokens, without_tests};

/// The layers in reading order. A module uses only those above it: all of the layers before, and
/// what stands before it in its own, except among [`PEERS`].
const LAYERS: [&[&str]; 6] = [
    &["clock", "entropy", "domain"],
    PEERS,
    &["config", "app"],
    &["gate", "sync", "report"],
    &["jobs", "http"],
    &["cli", "main"],
];

/// The three doors to the outside never use each other: what joins them stands further down.
const PEERS: &[&str] = &["store", "stripe", "mail"];

/// The Stripe simulator stands outside the layers, so that it cannot share our mistakes.
const SIM: &str = "sim";
const SIM_MAY_USE: [&str; 2] = ["clock", "entropy"];
const SIM_IS_USED_BY: [&str; 1] = ["cli"];

/// Names that belong to one place. A folder ends with a slash.
const HOME_OF: [(&[&str], &str, &str); 2] = [
    (
        &[
            "async_stripe",
            "miniserde",
            "stripe_billing",
            "stripe_checkout",
            "stripe_client_core",
            "stripe_core",
            "stripe_product",
            "stripe_shared",
            "stripe_types",
        ],
        "src/stripe/",
        "only stripe/ knows the crates of async-stripe",
    ),
    (&["sqlx"], "src/store/", "only store/ speaks SQL"),
];

/// Whoever asks one of these for `now` reads the machine's clock. Clippy forbids it too (see
/// clippy.toml), but an attribute can silence that. Their values may be handed about freely.
const CLOCKS: [&str; 4] = ["SystemTime", "Instant", "Timestamp", "Zoned"];

/// One screen and a half; longer ones hide what they do.
const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 700;

// --- the layers --------------------------------------------------------------------------------

/// A module's place in the reading order.
fn place(module: &str) -> Option<usize> {
    LAYERS.concat().iter().position(|name| *name == module)
}

/// Why `from` may not use `to`; `None` if it may.
fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == to {
        return None;
    }
    if from == SIM {
        let allowed = SIM_MAY_USE.contains(&to);
        return (!allowed).then(|| format!("sim uses only {}", SIM_MAY_USE.join(" and ")));
    }
    if to == SIM {
        let allowed = SIM_IS_USED_BY.contains(&from);
        return (!allowed).then(|| format!("sim is used only by {}", SIM_IS_USED_BY.join(", ")));
    }
    let Some(from_place) = place(from) else {
        return Some(format!("`{from}` has no place in the layers yet: give it one in LAYERS"));
    };
    let Some(to_place) = place(to) else {
        return Some(format!("`{to}` is not a module of the layers"));
    };
    if PEERS.contains(&from) && PEERS.contains(&to) {
        return Some(format!("{} are peers that never use each other", PEERS.join(", ")));
    }
    (to_place > from_place).then(|| "a module uses only those above it".to_owned())
}

/// `["store", "usage"]` for `src/store/usage.rs`, `["store"]` for `src/store/mod.rs`.
fn module_of(path: &str) -> Vec<&str> {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let mut parts: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
    if parts.last() == Some(&"mod") {
        parts.pop();
    }
    parts
}

/// The top-level modules that a file names by a path from the crate's root, with their lines.
///
/// Seen: `crate::x`, `use crate::{x, y::z}`, `super::…::x` as far up as the root, and `tollgate::x`
/// in the binary. Not seen: what a macro of another module expands to, and what arrives through a
/// type that a permitted module hands out; both are rare and harmless beside an import.
fn modules_named(path: &str, tokens: &[Token]) -> Vec<(usize, String)> {
    let depth_of_file = module_of(path).len();
    let mut inline_modules: Vec<usize> = Vec::new(); // where each open `mod x {` closes
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        inline_modules.retain(|end| *end >= at);
        if tokens[at].is("mod") && tokens.get(at + 2).is_some_and(|token| token.is("{")) {
            inline_modules.push(closing(tokens, at + 2));
        }
        let begins = at == 0 || !tokens[at - 1].is("::");
        if begins && let Some(after) = root_path(tokens, at, depth_of_file + inline_modules.len()) {
            found.extend(first_names(&tokens[after..]));
        }
    }
    found
}

/// If a path from the crate's root begins at `at`: where it goes on after its root.
fn root_path(tokens: &[Token], at: usize, depth: usize) -> Option<usize> {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.is(text));
    if (is(at, "crate") || is(at, "tollgate")) && is(at + 1, "::") {
        return Some(at + 2);
    }
    let mut supers = 0;
    while is(at + 2 * supers, "super") && is(at + 2 * supers + 1, "::") {
        supers += 1;
    }
    (supers > 0 && supers >= depth).then_some(at + 2 * supers)
}

/// The names that a path, or each path of a braced group, begins with.
fn first_names(path: &[Token]) -> Vec<(usize, String)> {
    let Some(first) = path.first() else { return Vec::new() };
    if !first.is("{") {
        // A macro at the crate's root is no module.
        let is_macro = path.get(1).is_some_and(|token| token.is("!"));
        return if is_macro { Vec::new() } else { vec![(first.line, first.text.clone())] };
    }
    let end = closing(path, 0);
    let mut names = Vec::new();
    let mut at = 1;
    while at < end {
        if path[at].is("{") {
            at = closing(path, at);
        } else if path[at - 1].is("{") || path[at - 1].is(",") {
            names.push((path[at].line, path[at].text.clone()));
        }
        at += 1;
    }
    names
}

/// `src/store/tests.rs` and what is below `src/store/tests/`. That these are left out of the
/// binary, [`hidden_code_faults`] sees to.
pub fn is_test(path: &str) -> bool {
    module_of(path).contains(&"tests")
}

/// A module called `tests` without `#[cfg(test)]` would be code that none of these rules sees.
fn hidden_code_faults(path: &str, text: &str) -> Vec<String> {
    let code = without_tests(&tokens(text));
    code.windows(2)
        .filter(|two| !is_test(path) && two[0].is("mod") && two[1].is("tests"))
        .map(|two| format!("{path}:{}: mod tests lacks #[cfg(test)]", two[0].line))
        .collect()
}

fn layer_faults(path: &str, text: &str) -> Vec<String> {
    let own = module_of(path)[0];
    if own == "lib" || is_test(path) {
        return Vec::new();
    }
    let used = modules_named(path, &without_tests(&tokens(text)));
    used.into_iter()
        .filter_map(|(line, to)| {
            forbidden(own, &to).map(|why| format!("{path}:{line}: {own} uses {to}: {why}"))
        })
        .collect()
}

/// lib.rs is the table of contents, so its modules stand in the layers' order; the simulator
/// anywhere between those it uses and those that use it.
fn order_faults(lib: &str) -> Vec<String> {
    let tokens = tokens(lib);
    let mut highest = 0;
    let mut faults = Vec::new();
    for three in tokens.windows(3).filter(|three| three[0].is("mod") && three[2].is(";")) {
        let (line, module) = (three[1].line, three[1].text.as_str());
        let bounds = if module == SIM {
            let first_user = SIM_IS_USED_BY.iter().filter_map(|name| place(name)).min();
            let last_used = SIM_MAY_USE.iter().filter_map(|name| place(name)).max();
            last_used.zip(first_user.map(|place| place - 1))
        } else {
            place(module).map(|place| (place, place))
        };
        match bounds {
            None => faults.push(format!("src/lib.rs:{line}: `{module}` has no place in LAYERS")),
            Some((_, latest)) if highest > latest => {
                faults.push(format!("src/lib.rs:{line}: `{module}` is out of order"));
            }
            Some((earliest, _)) => highest = highest.max(earliest),
        }
    }
    faults
}

// --- names with one home, and limits -----------------------------------------------------------

fn home_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if is_test(path) {
        return faults;
    }
    let code = without_tests(&tokens(text));
    for (names, home, why) in HOME_OF {
        if path.starts_with(home) {
            continue;
        }
        for token in code.iter().filter(|token| token.is_word()) {
            if names.contains(&token.text.as_str()) {
                faults.push(format!("{path}:{}: names {}: {why}", token.line, token.text));
            }
        }
    }
    if path != "src/clock.rs" {
        for three in code.windows(3) {
            let now = CLOCKS.iter().any(|clock| three[0].is(clock)) && three[2].is("now");
            // `elapsed` is a hidden `now`.
            let elapsed = three[0].is(".") && three[1].is("elapsed") && three[2].is("(");
            if (now && three[1].is("::")) || elapsed {
                faults
                    .push(format!("{path}:{}: reads the time: only clock.rs does", three[0].line));
            }
        }
    }
    faults
}

/// Lines are counted from `fn` to the closing brace, comments and blank ones included: it is what
/// a reader has to scroll. A brace inside a signature (a const generic's) would be taken for the
/// body, which makes the function look shorter, never longer.
fn length_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES {
        faults.push(format!("{path}: {lines} lines, more than {FILE_LINES}: split it"));
    }
    let tokens = tokens(text);
    for (at, token) in tokens.iter().enumerate() {
        let name = tokens.get(at + 1).filter(|name| token.is("fn") && name.is_word());
        let (Some(name), Some(end)) = (name, body_end(&tokens, at)) else { continue };
        let lines = tokens[end].line - token.line + 1;
        if lines > FUNCTION_LINES {
            faults.push(format!(
                "{path}:{}: fn {} has {lines} lines, more than {FUNCTION_LINES}: split it",
                token.line, name.text
            ));
        }
    }
    faults
}

/// Where the body of the function at `at` closes; `None` for one without a body.
fn body_end(tokens: &[Token], mut at: usize) -> Option<usize> {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            _ if !token.is(&token.text) => {} // a string
            ";" => return None,
            "{" => return Some(closing(tokens, at)),
            "(" | "[" => at = closing(tokens, at),
            _ => {}
        }
        at += 1;
    }
    None
}

// --- documents ---------------------------------------------------------------------------------

/// Files the documents speak of that belong to whoever runs Tollgate.
const NOT_OURS: [&str; 1] = ["plans.toml"];

/// The files and folders that a document names: in backticks, or as the target of a link.
///
/// A name in backticks counts if it ends with a slash or with an ending that files here have;
/// placeholders (`<kind>`), globs and HTTP paths do not. Fenced blocks are skipped: they hold
/// commands and drawings.
fn paths_named(document: &str) -> Vec<(usize, String)> {
    const ENDINGS: [&str; 11] =
        [".rs", ".toml", ".md", ".sql", ".html", ".js", ".mjs", ".json", ".txt", ".lock", ".css"];
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in document.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let in_backticks = line.split('`').skip(1).step_by(2);
        let looks_like_path = |name: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
            name.chars().all(plain)
                && !name.starts_with('/')
                && (name.ends_with('/') || ENDINGS.iter().any(|ending| name.ends_with(ending)))
        };
        let linked = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let inside = |target: &&str| !target.is_empty() && !target.contains(':');
        let named = in_backticks.filter(looks_like_path).chain(linked.filter(inside));
        found.extend(named.map(|name| (index + 1, name.to_owned())));
    }
    found
}

/// Names may be written from the project's root, from `src/` or from `tests/it/`.
fn document_faults(root: &Path, name: &str, document: &str) -> Vec<String> {
    let missing = |path: &str| {
        let bases = ["", "src", "tests/it"];
        !NOT_OURS.contains(&path) && !bases.iter().any(|base| root.join(base).join(path).exists())
    };
    paths_named(document)
        .into_iter()
        .filter(|(_, path)| missing(path))
        .map(|(line, path)| format!("{name}:{line}: names `{path}`, which does not exist"))
        .collect()
}

// --- the project as it is ----------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a rule over every Rust file below the folders.
fn faults_in(folders: &[&str], rule: fn(&str, &str) -> Vec<String>) -> Vec<String> {
    let files = folders.iter().flat_map(|folder| rust_files(&root().join(folder)));
    files
        .flat_map(|file| {
            let path = file.strip_prefix(root()).expect("below the root").display().to_string();
            rule(&path, &fs::read_to_string(&file).expect("a source file"))
        })
        .collect()
}

#[track_caller]
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn each_module_uses_only_those_above_it() {
    assert_none(&faults_in(&["src"], layer_faults));
    assert_none(&faults_in(&["src"], hidden_code_faults));
    assert_none(&order_faults(&fs::read_to_string(root().join("src/lib.rs")).unwrap()));
}

#[test]
fn libraries_and_the_clock_stay_in_their_one_place() {
    assert_none(&faults_in(&["src"], home_faults));
}

#[test]
fn no_file_and_no_function_is_too_long() {
    assert_none(&faults_in(&["src", "tests", "benches"], length_faults));
}

#[test]
fn the_documents_name_only_what_exists() {
    for name in ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"] {
        if let Ok(document) = fs::read_to_string(root().join(name)) {
            assert_none(&document_faults(root(), name, &document));
        }
    }
}

// --- the rules find what they are for ----------------------------------------------------------

#[track_caller]
fn assert_found(faults: &[String], expected: &[&str]) {
    let starts: Vec<&str> = expected.to_vec();
    assert!(
        faults.len() == starts.len() && faults.iter().zip(&starts).all(|(f, s)| f.starts_with(s)),
        "expected {expected:#?}\nfound {faults:#?}"
    );
}

#[test]
fn a_planted_upward_use_is_found_in_every_spelling() {
    for use_of_http in [
        "use crate::http;",
        "use crate::http::Router;",
        "use crate::{\n    clock::Clock, domain::{ids, http}, http::{Router, Error},\n};",
        "fn f() { crate::http::start() }",
        "use super::http;",
        "use super::{clock, http as web};",
        "mod inner { use super::super::http; }",
        "const X: char = '\"'; /* \" */ use crate::http; // \"",
        "const X: &str = r#\"\"\"#; fn f<'a>(x: &'a str) { crate::http::g(x) }",
        "#[cfg(test)] mod tests { fn f() {} } use crate::http;",
        "#[cfg(test)] use crate::{sync}; use crate::http;",
    ] {
        let faults = layer_faults("src/gate.rs", use_of_http);
        assert!(
            faults.len() == 1 && faults[0].contains("gate uses http: a module uses only"),
            "{use_of_http}\n{faults:#?}"
        );
    }
    let deep = layer_faults("src/store/usage.rs", "use super::super::gate;\nuse super::gate;");
    assert_found(&deep, &["src/store/usage.rs:1: store uses gate"]);
}

#[test]
fn what_is_allowed_or_only_said_is_no_fault() {
    for (path, text) in [
        ("src/gate.rs", "use crate::{clock, domain::ids, store, app};"),
        ("src/gate.rs", "// use crate::http;\n/* crate::http /* */ crate::http */"),
        ("src/gate.rs", "const X: &str = \"crate::http::x \\\" crate::http\";"),
        ("src/gate.rs", "#[cfg(test)]\nmod tests { use crate::http; use crate::sim; }"),
        ("src/gate.rs", "use crate::gate::http; mod a { use super::http; }"),
        ("src/config.rs", "use crate::{domain, mail, stripe};"),
        ("src/app.rs", "use crate::config::Config;"),
        ("src/http/api.rs", "use crate::jobs; use super::error;"),
        ("src/store/mod.rs", "fn f() { crate::statements!() }"),
        ("src/store/tests.rs", "use crate::http;"),
        ("src/store/tests/counting.rs", "use crate::http;"),
        ("src/cli/sandbox.rs", "use crate::sim;"),
        ("src/sim/http.rs", "use crate::{clock, entropy}; use super::state; use crate::sim::x;"),
        ("src/main.rs", "use tollgate::cli;"),
    ] {
        assert_found(&layer_faults(path, text), &[]);
    }
}

#[test]
fn peers_the_simulator_and_strangers_are_held_apart() {
    for (path, text, expected) in [
        ("src/store/a.rs", "use crate::mail;", "store uses mail: store, stripe, mail are peers"),
        ("src/mail/a.rs", "use crate::stripe;", "mail uses stripe: store, stripe, mail are peers"),
        ("src/sim/mod.rs", "use crate::stripe;", "sim uses stripe: sim uses only clock"),
        ("src/sim/mod.rs", "use crate::domain;", "sim uses domain: sim uses only clock"),
        ("src/http/a.rs", "use crate::sim;", "http uses sim: sim is used only by cli"),
        ("src/main.rs", "use tollgate::sim;", "main uses sim: sim is used only by cli"),
        ("src/jobs/mod.rs", "use crate::http;", "jobs uses http: a module uses only"),
        ("src/clock.rs", "use crate::entropy;", "clock uses entropy: a module uses only"),
        ("src/util.rs", "use crate::clock;", "util uses clock: `util` has no place"),
        ("src/gate.rs", "use crate::util;", "gate uses util: `util` is not a module"),
        ("src/gate.rs", "use crate::*;", "gate uses *: `*` is not a module"),
    ] {
        assert_found(&layer_faults(path, text), &[&format!("{path}:1: {expected}")]);
    }
}

#[test]
fn code_that_calls_itself_tests_is_found() {
    let hidden = "pub mod tests;\n#[cfg(test)]\nmod tests { mod tests {} }";
    assert_found(&hidden_code_faults("src/a.rs", hidden), &["src/a.rs:1: mod tests lacks"]);
}

#[test]
fn a_table_of_contents_out_of_order_is_found() {
    assert_found(
        &order_faults("pub mod clock;\npub mod stripe;\npub mod sim;\npub mod gate;"),
        &[],
    );
    assert_found(&order_faults("pub mod gate; pub mod sim; pub mod cli;"), &[]);
    assert_found(
        &order_faults("pub mod stripe;\npub mod store;"),
        &["src/lib.rs:2: `store` is out of order"],
    );
    assert_found(&order_faults("mod cli;\nmod sim;"), &["src/lib.rs:2: `sim` is out of order"]);
    assert_found(&order_faults("mod sim;\nmod clock;"), &["src/lib.rs:2: `clock` is out of order"]);
    assert_found(&order_faults("mod util;"), &["src/lib.rs:1: `util` has no place"]);
}

#[test]
fn a_library_or_the_time_outside_its_home_is_found() {
    for (path, text, expected) in [
        ("src/gate.rs", "use sqlx::Any;", "names sqlx: only store/"),
        ("src/sync.rs", "fn f(x: stripe_shared::Customer) {}", "names stripe_shared: only stripe/"),
        ("src/sim/mod.rs", "use miniserde::json;", "names miniserde: only stripe/"),
        ("src/jobs/mod.rs", "let x = SystemTime::now();", "reads the time: only clock.rs"),
        ("src/jobs/mod.rs", "let x = jiff::Timestamp::now();", "reads the time: only clock.rs"),
        ("src/jobs/mod.rs", "let x = UNIX_EPOCH.elapsed();", "reads the time: only clock.rs"),
    ] {
        assert_found(&home_faults(path, text), &[&format!("{path}:1: {expected}")]);
    }
    for (path, text) in [
        ("src/store/usage.rs", "use sqlx::Any;"),
        ("src/stripe/mod.rs", "use stripe_shared::Customer;"),
        ("src/clock.rs", "jiff::Timestamp::now()"),
        ("src/gate.rs", "/// Unlike sqlx.\nfn f(clock: Clock) { clock.now(); log(\"sqlx\") }"),
        ("src/gate.rs", "#[cfg(test)] mod tests { use sqlx::Any; }"),
        ("src/sim/tests/wire.rs", "use stripe_shared::Customer;"),
        ("src/mail/message.rs", "fn date(mail: &Mail) -> SystemTime { UNIX_EPOCH + mail.date }"),
    ] {
        assert_found(&home_faults(path, text), &[]);
    }
}

#[test]
fn what_is_too_long_is_found() {
    let function = |lines: usize| format!("fn long(\n) {{\n{}}}\n", "// }\n".repeat(lines - 3));
    assert_found(&length_faults("src/a.rs", &function(FUNCTION_LINES)), &[]);
    let expected = format!("src/a.rs:2: fn long has {} lines", FUNCTION_LINES + 1);
    let after_another = format!("fn short() {{}}\n{}", function(FUNCTION_LINES + 1));
    assert_found(&length_faults("src/a.rs", &after_another), &[&expected]);

    let without_body = "trait T { fn f(x: [u8; 3]); }\ntype F = fn();\n".to_owned();
    assert_found(&length_faults("src/a.rs", &(without_body + &"\n".repeat(FILE_LINES - 2))), &[]);
    let expected = format!("src/a.rs: {} lines", FILE_LINES + 1);
    assert_found(&length_faults("src/a.rs", &"\n".repeat(FILE_LINES + 1)), &[&expected]);
}

#[test]
fn a_document_that_names_what_is_gone_is_found() {
    let document = "\
        `src/clock.rs`, `clock.rs`, `domain/`, `harness/mod.rs`, [here](Cargo.toml#x) are there.\n\
        `GET /healthz`, `mail/<kind>/body.txt`, `plans.toml`, `tests/*.rs`, [web](https://x.y/z.md).\n\
        ```\n`src/drawn.rs`\n```\n\
        `src/gone.rs` and [gone](docs/gone.md)\n\
        `gone/`";
    let expected = ["D.md:6: names `src/gone.rs`", "D.md:6: names `docs/gone.md`", "D.md:7: names"];
    assert_found(&document_faults(root(), "D.md", document), &expected);
    let named: BTreeSet<String> = paths_named(document).into_iter().map(|(_, path)| path).collect();
    assert!(named.contains("Cargo.toml") && named.contains("domain/"), "{named:?}");
}
