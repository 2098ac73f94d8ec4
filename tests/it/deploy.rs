//! The deployment files agree with each other, with the source and with the daemon's own words.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::tidy::is_test;
use crate::tidy::source::{Kind, rust_files, tokens, without_tests};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

// --- fly.toml ----------------------------------------------------------------------------------

fn fly() -> toml::Table {
    read("fly.toml").parse().expect("fly.toml is TOML")
}

/// The value at a path of keys; a table in a list is named by its place, as in `mounts.0.source`.
#[track_caller]
fn at<'a>(table: &'a toml::Table, path: &str) -> &'a toml::Value {
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| table.get(key));
    keys.try_fold(first.unwrap_or_else(|| panic!("fly.toml has no {path}")), |value, key| {
        match key.parse::<usize>() {
            Ok(place) => value.get(place),
            Err(_) => value.get(key),
        }
    })
    .unwrap_or_else(|| panic!("fly.toml has no {path}"))
}

#[track_caller]
fn text<'a>(table: &'a toml::Table, path: &str) -> &'a str {
    at(table, path).as_str().unwrap_or_else(|| panic!("{path} in fly.toml is no text"))
}

// --- Dockerfile --------------------------------------------------------------------------------

/// One instruction of a stage of the Dockerfile, with its continued lines joined.
struct Instruction {
    stage: usize,
    name: String,
    rest: String,
}

fn dockerfile(text: &str) -> Vec<Instruction> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let mut stage = 0;
    joined
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| {
            if name == "FROM" {
                stage += 1;
            }
            let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
            Instruction { stage, name: name.to_owned(), rest }
        })
        .collect()
}

/// The instructions of that name in the stage that becomes the image.
fn in_image(name: &str) -> Vec<String> {
    let all = dockerfile(&read("Dockerfile"));
    let last = all.last().expect("an instruction").stage;
    all.into_iter().filter(|i| i.stage == last && i.name == name).map(|i| i.rest).collect()
}

#[track_caller]
fn only_in_image(name: &str) -> String {
    let found = in_image(name);
    assert_eq!(found.len(), 1, "one {name} in the image: {found:?}");
    found.into_iter().next().expect("one")
}

/// `["serve"]` as words.
fn exec_form(text: &str) -> Vec<String> {
    serde_json::from_str(text).expect("the exec form, which needs no shell")
}

/// The variables the image sets.
fn image_env() -> Vec<(String, String)> {
    in_image("ENV")
        .iter()
        .flat_map(|rest| rest.split(' '))
        .map(|pair| pair.split_once('=').unwrap_or_else(|| panic!("ENV {pair}")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn image_variable(name: &str) -> String {
    let found = image_env().into_iter().find(|(variable, _)| variable == name);
    found.unwrap_or_else(|| panic!("the Dockerfile sets no {name}")).1
}

// --- the daemon --------------------------------------------------------------------------------

/// What the daemon answers to, of the paths that a deployment asks for (DESIGN's contract).
fn routes() -> BTreeSet<&'static str> {
    BTreeSet::from(["/healthz", "/readyz", "/metrics"])
}

/// The subcommands that the shipped binary knows, by its own help.
fn commands() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate")).arg("--help").output().unwrap();
    assert!(output.status.success(), "--help: {}", output.status);
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let listed = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1);
    listed
        .take_while(|line| !line.trim().is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

// --- the tests ---------------------------------------------------------------------------------

#[test]
fn one_port_and_one_folder_everywhere() {
    let fly = fly();
    let port = only_in_image("EXPOSE");
    assert_eq!(image_variable("TOLLGATE_LISTEN"), format!("0.0.0.0:{port}"));
    assert_eq!(at(&fly, "http_service.internal_port").to_string(), port);
    assert_eq!(at(&fly, "metrics.port").to_string(), port);

    let file = PathBuf::from(image_variable("DATABASE_URL").replace("sqlite://", ""));
    let folder = file.parent().expect("an absolute path").to_str().expect("UTF-8");
    assert!(folder.starts_with('/'), "{folder}: the daemon has no home in the image");
    assert_eq!(text(&fly, "mounts.0.destination"), folder);
    assert_eq!(only_in_image("VOLUME"), folder);
}

#[test]
fn the_plans_file_is_put_where_the_image_looks() {
    let fly = fly();
    assert_eq!(text(&fly, "files.0.guest_path"), image_variable("TOLLGATE_PLANS"));
    assert_eq!(text(&fly, "files.0.local_path"), "plans.toml");
}

#[test]
fn one_machine_that_never_sleeps_and_has_time_to_drain() {
    let fly = fly();
    assert_eq!(text(&fly, "http_service.auto_stop_machines"), "off");
    assert_eq!(at(&fly, "http_service.min_machines_running").as_integer(), Some(1));
    assert_eq!(text(&fly, "kill_signal"), "SIGTERM");
    assert_eq!(at(&fly, "kill_timeout").as_integer(), Some(30));
    assert_eq!(at(&fly, "http_service.force_https").as_bool(), Some(true));
    // A release command sees no volume, so it cannot migrate a SQLite file.
    assert!(fly.get("deploy").is_none_or(|deploy| deploy.get("release_command").is_none()));
    let url = text(&fly, "env.TOLLGATE_PUBLIC_URL");
    assert_eq!(url, format!("https://{}.fly.dev", text(&fly, "app")));
}

#[test]
fn checks_and_metrics_ask_for_paths_the_daemon_has() {
    let fly = fly();
    let checks = at(&fly, "http_service.checks").as_array().expect("a list").iter();
    let mut asked: BTreeSet<&str> =
        checks.map(|check| check["path"].as_str().expect("a path")).collect();
    assert_eq!(asked, BTreeSet::from(["/healthz", "/readyz"]));
    asked.insert(text(&fly, "metrics.path"));
    let unknown: Vec<_> = asked.difference(&routes()).copied().collect();
    assert!(unknown.is_empty(), "no such routes: {unknown:?}");
}

#[test]
fn the_commands_named_are_commands_of_the_binary() {
    let mut named = exec_form(&only_in_image("CMD"));
    // Set, or advised in a comment.
    let fly = read("fly.toml");
    let lines = fly.lines().map(|line| line.trim_start_matches(['#', ' ']));
    let release = lines.filter_map(|line| line.strip_prefix("release_command = "));
    named.extend(release.map(|command| command.trim_matches('"').to_owned()));
    assert_eq!(named, ["serve", "migrate"]);

    let known = commands();
    let unknown: Vec<_> = named.iter().filter(|command| !known.contains(*command)).collect();
    assert!(unknown.is_empty(), "--help knows {known:?}, not {unknown:?}");
}

#[test]
fn the_image_starts_its_own_binary_as_nobody_special() {
    let user = only_in_image("USER");
    let parts: Vec<_> = user.split(':').map(str::parse::<u32>).collect();
    assert!(
        parts.iter().all(|id| id.as_ref().is_ok_and(|id| *id > 0)),
        "USER {user}: numbers, so that a cluster that forbids root can tell"
    );

    let entrypoint = exec_form(&only_in_image("ENTRYPOINT"));
    let copies = in_image("COPY");
    let is_binary = |copy: &&String| copy.contains("/release/tollgate ");
    let copy = copies.iter().find(is_binary).expect("the binary is copied");
    assert_eq!(copy.rsplit(' ').next(), entrypoint.first().map(String::as_str));

    // Else the first write to a new volume fails: it takes its owner from the image's folder.
    let folder = only_in_image("VOLUME");
    let owned = copies.iter().any(|copy| {
        copy.contains(&format!("--chown={user} ")) && copy.ends_with(&format!(" {folder}"))
    });
    assert!(owned, "{folder} belongs to {user}: {copies:?}");
}

#[test]
fn the_image_is_built_by_our_rust_on_the_system_it_runs_on() {
    let stages: Vec<_> = dockerfile(&read("Dockerfile"))
        .into_iter()
        .filter(|instruction| instruction.name == "FROM")
        .map(|instruction| instruction.rest)
        .collect();
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let rust = manifest["package"]["rust-version"].as_str().unwrap();
    // Bookworm is Debian 12: the C library linked against is the one that is there at run time.
    assert_eq!(stages[0].split(' ').next(), Some(&*format!("rust:{rust}-slim-bookworm")));
    assert_eq!(stages.last().map(String::as_str), Some("debian:bookworm-slim"));
}

#[test]
fn what_the_build_reads_reaches_it_and_nothing_else_does() {
    let ignore = read(".dockerignore");
    let mut lines = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "everything stays out that is not let in: .env, databases");
    let let_in: BTreeSet<&str> = lines.map(|line| line.strip_prefix('!').expect("!name")).collect();

    let mut needed = BTreeSet::from(["Cargo.toml".to_owned(), "Cargo.lock".into(), "src".into()]);
    for file in rust_files(&root().join("src")) {
        let path = file.strip_prefix(root()).expect("below the root");
        if !is_test(path.to_str().expect("UTF-8")) {
            needed.extend(included_by(&file));
        }
    }
    let missing: Vec<_> = needed.iter().filter(|name| !let_in.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "the build needs {missing:?}: let them in by .dockerignore");
    for secret in [".env", "plans.toml", "target", ".git"] {
        assert!(!let_in.contains(secret), "{secret} does not belong in an image");
    }
}

/// The top-level folders and files that a source file compiles into the binary.
fn included_by(file: &Path) -> Vec<String> {
    let source = without_tests(&tokens(&fs::read_to_string(file).unwrap()));
    let includes = source.windows(4).filter(|four| {
        let reads = ["include_str", "include_bytes", "include"];
        reads.iter().any(|name| four[0].is(name)) && four[1].is("!") && four[3].kind == Kind::Text
    });
    includes
        .map(|four| {
            let target = file.parent().expect("in a folder").join(&four[3].text);
            top_level(&target)
                .unwrap_or_else(|| panic!("{}: outside the project", target.display()))
        })
        .collect()
}

/// The first name of a path below the project's root, `..` resolved.
fn top_level(path: &Path) -> Option<String> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    let first = plain.strip_prefix(root()).ok()?.components().next()?;
    Some(first.as_os_str().to_str()?.to_owned())
}

#[test]
fn the_variables_set_are_variables_the_source_reads() {
    let fly = fly();
    let in_fly = at(&fly, "env").as_table().expect("a table").keys().cloned();
    let set: BTreeSet<String> =
        image_env().into_iter().map(|(name, _)| name).chain(in_fly).collect();
    for secret in ["KEY", "TOKEN", "SECRET", "SMTP_URL"] {
        let leaked: Vec<_> = set.iter().filter(|name| name.contains(secret)).collect();
        assert!(leaked.is_empty(), "{leaked:?} are secrets: `fly secrets set`");
    }
    // Named somewhere in the source as a whole string: the nearest to "read" without running it.
    let known: BTreeSet<String> = rust_files(&root().join("src"))
        .iter()
        .flat_map(|file| tokens(&fs::read_to_string(file).unwrap()))
        .filter(|token| token.kind == Kind::Text)
        .map(|token| token.text)
        .collect();
    let unknown: Vec<_> = set.difference(&known).collect();
    assert!(unknown.is_empty(), "nothing in src reads {unknown:?}");
}

#[test]
fn continued_lines_and_comments_of_a_dockerfile_are_read() {
    let read =
        dockerfile("# FROM x\nFROM a AS b\nRUN one \\\n    # why\n    two\nFROM c\nUSER 1:1\n");
    let read: Vec<_> = read.iter().map(|i| (i.stage, i.name.as_str(), i.rest.as_str())).collect();
    let expected =
        [(1, "FROM", "a AS b"), (1, "RUN", "one two"), (2, "FROM", "c"), (2, "USER", "1:1")];
    assert_eq!(read, expected);
}
