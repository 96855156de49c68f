//! Rules for the whole workspace that the compiler does not check: dependencies between crates, names, and words.
//!
//! ARCHITECTURE.md describes the rules for crates. Each exception is listed here with its reason. A test fails if an
//! exception is no longer needed.
#![cfg(test)]

#[path = "tidy/docs.rs"]
mod docs;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[track_caller]
fn assert_none(found: &[String], what_to_do: &str) {
    assert!(found.is_empty(), "\n{}\n{what_to_do}\n", found.join("\n"));
}

// Manifests.

/// A crate of the workspace.
struct Member {
    folder: String,
    manifest: Table,
}

/// An entry in a dependency table of a crate.
struct Dependency {
    table: &'static str,
    name: String,
    line: Value,
}

fn members() -> Vec<Member> {
    let root: Table = read("Cargo.toml").parse().unwrap();
    let folders = root["workspace"]["members"].as_array().unwrap();
    let folders = folders.iter().map(|folder| folder.as_str().unwrap().to_owned());
    folders
        .map(|folder| {
            let manifest = read(&format!("{folder}/Cargo.toml")).parse().unwrap();
            Member { folder, manifest }
        })
        .collect()
}

impl Member {
    fn package(&self) -> &str {
        self.manifest["package"]["name"].as_str().unwrap()
    }

    /// All dependencies, including dependencies for a single platform.
    fn dependencies(&self) -> Vec<Dependency> {
        let platforms = self.manifest.get("target").and_then(Value::as_table);
        let platforms = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
        let mut found = Vec::new();
        for holder in platforms.chain([&self.manifest]) {
            for table in ["dependencies", "build-dependencies", "dev-dependencies"] {
                for (name, line) in holder.get(table).and_then(Value::as_table).into_iter().flatten() {
                    // If a dependency is renamed, use the name of its package.
                    let package = line.get("package").and_then(Value::as_str).unwrap_or(name);
                    found.push(Dependency { table, name: package.into(), line: line.clone() });
                }
            }
        }
        found
    }

    /// The names of the dependencies of the crate itself, without dependencies of its tests.
    fn non_test_dependencies(&self) -> Vec<String> {
        let built = self.dependencies().into_iter().filter(|dependency| dependency.table != "dev-dependencies");
        built.map(|dependency| dependency.name).collect()
    }
}

/// The workspace crates on which each crate may depend. The crates in `deploy/` may depend on all crates.
const MAY_DEPEND_ON: [(&str, &[&str]); 10] = [
    ("events", &["garage-rules"]),
    ("events/rules", &[]),
    ("events/worker", &["garage-events"]),
    ("matchmaker", &["garage-events", "garage-rules", "garage-worker"]),
    ("session/keys", &["garage-events"]),
    ("session", &["garage-events", "garage-keys", "garage-worker"]),
    ("director", &["garage-events", "garage-worker"]),
    ("inventory", &["garage-events", "garage-worker"]),
    ("gateway", &["garage-events", "garage-rules", "garage-worker"]),
    ("gameserver", &["garage-events"]),
];

#[test]
fn every_crate_depends_only_on_crates_of_earlier_layers() {
    let members = members();
    let ours: BTreeSet<_> = members.iter().map(|member| member.package().to_owned()).collect();
    let mut wrong = Vec::new();
    for member in members.iter().filter(|member| !member.folder.starts_with("deploy/")) {
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(folder, _)| *folder == member.folder) else {
            wrong.push(format!("{}: no entry in MAY_DEPEND_ON, in events/tests/tidy.rs", member.folder));
            continue;
        };
        let known = member
            .non_test_dependencies()
            .into_iter()
            .filter(|name| ours.contains(name) && !allowed.contains(&name.as_str()));
        wrong.extend(known.map(|name| format!("{}/Cargo.toml: depends on {name}", member.folder)));
    }
    assert_none(
        &wrong,
        "events may not depend on another crate of the workspace, events/worker and the game server only on events, a \
         worker only on events and events/worker. If two workers share code, move it to events. (Tests may depend on \
         more crates, with dev-dependencies.)",
    );
}

#[test]
fn every_crate_in_the_list_of_dependencies_exists() {
    let folders: BTreeSet<_> = members().into_iter().map(|member| member.folder).collect();
    let gone = MAY_DEPEND_ON.iter().filter(|(folder, _)| !folders.contains(*folder));
    let gone: Vec<_> = gone.map(|(folder, _)| (*folder).to_owned()).collect();
    assert_none(&gone, "not a member of the workspace: remove its entry from MAY_DEPEND_ON, in events/tests/tidy.rs");
}

#[test]
fn only_one_crate_depends_on_the_library_of_each_external_system() {
    let homes = [("sqlx", "inventory"), ("kube", "director"), ("k8s-openapi", "director"), ("warp", "gateway")];
    // This crate replaces the Kubernetes API in tests.
    let double = ("kube", "deploy/apiserver");
    let mut wrong = Vec::new();
    for member in members() {
        for name in member.non_test_dependencies() {
            if let Some((_, home)) = homes.iter().find(|(system, _)| *system == name)
                && *home != member.folder
                && double != (name.as_str(), member.folder.as_str())
            {
                wrong.push(format!("{}/Cargo.toml: depends on {name}; only {home} may depend on it", member.folder));
            }
        }
    }
    assert_none(&wrong, "use the crate that owns the system: send it a request (events::svc) or append an event");
}

#[test]
fn versions_are_only_in_the_root_manifest() {
    let mut wrong = Vec::new();
    for member in members() {
        for Dependency { table, name, line } in member.dependencies() {
            let own = ["version", "path", "git", "registry"].iter().any(|field| line.get(field).is_some());
            if own || line.get("workspace") != Some(&Value::Boolean(true)) {
                wrong.push(format!("{}/Cargo.toml: [{table}] {name} = {line}", member.folder));
            }
        }
    }
    assert_none(
        &wrong,
        "put the version into [workspace.dependencies] of the root Cargo.toml, and write `name.workspace = true` here",
    );
}

#[test]
fn every_crate_uses_the_lints_of_the_workspace() {
    let lints = |member: &Member| member.manifest.get("lints").and_then(|lints| lints.get("workspace")).cloned();
    let without = members().into_iter().filter(|member| lints(member) != Some(Value::Boolean(true)));
    let without: Vec<_> = without.map(|member| format!("{}/Cargo.toml", member.folder)).collect();
    assert_none(&without, "add [lints] workspace = true");
}

#[test]
fn every_package_is_in_the_workspace() {
    let folders: BTreeSet<_> = members().into_iter().map(|member| format!("{}/Cargo.toml", member.folder)).collect();
    let files = walk().into_iter().filter(|file| file.ends_with("/Cargo.toml") && !folders.contains(file));
    assert_none(&files.collect::<Vec<_>>(), "add its folder to the members in the root Cargo.toml");
}

// Sources.

/// Every file of the workspace, as a path relative to the root.
fn walk() -> Vec<String> {
    fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                visit(&entry.path(), files);
            } else {
                files.push(entry.path());
            }
        }
    }
    let (root, mut files) = (root(), Vec::new());
    visit(&root, &mut files);
    let mut files: Vec<_> =
        files.iter().map(|file| file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
    files.sort();
    files
}

/// A Rust file.
struct Source {
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let files = walk().into_iter().filter(|file| file.ends_with(".rs"));
    files.map(|path| Source { text: read(&path), path }).collect()
}

impl Source {
    /// Whether the file is only compiled for tests and benchmarks.
    fn is_test(&self) -> bool {
        let path = Path::new(&self.path);
        path.starts_with("deploy/e2e")
            || path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
            || path.file_name().is_some_and(|name| name == "tests.rs")
    }

    /// The lines with their numbers, without comments.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Like [`Source::lines`], but without the module `tests` at the end of the file.
    fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        // By convention, this module is the last item of a file. Code after it is not checked.
        let end = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let count = self.text.split_at(end).0.lines().count();
        self.lines().take_while(move |(number, _)| *number <= count)
    }
}

#[test]
fn no_module_hides_in_mod_rs() {
    let files = sources().into_iter().map(|source| source.path).filter(|path| path.ends_with("/mod.rs"));
    assert_none(&files.collect::<Vec<_>>(), "rename foo/mod.rs to foo.rs");
}

#[test]
fn no_file_is_too_long() {
    let long = sources().into_iter().filter(|source| !source.is_test() && source.text.lines().count() > 600);
    let long = long.map(|source| format!("{}: {} lines", source.path, source.text.lines().count()));
    assert_none(
        &long.collect::<Vec<_>>(),
        "a file with more than 600 lines usually has two purposes: move one of them to its own file",
    );
}

#[test]
fn every_module_has_a_specific_name() {
    let empty = ["utils", "util", "helpers", "helper", "common", "manager", "types"];
    let mut wrong = Vec::new();
    for source in sources() {
        let path = Path::new(&source.path).with_extension("");
        if let Some(part) = path.iter().find(|part| empty.iter().any(|name| *part == *name)) {
            wrong.push(format!("{}: {}", source.path, part.display()));
        }
        for (number, line) in source.lines() {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            let declared = words.find(|word| *word == "mod").and_then(|_| words.next());
            if line.trim_end().ends_with(['{', ';']) && declared.is_some_and(|name| empty.contains(&name)) {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(&wrong, "name the module after its content, or move the content to the modules that use it");
}

/// Texts outside of the crate events that look like a subject or a key, but are allowed: file, text, reason.
const NAMES_ELSEWHERE: [(&str, &str, &str); 4] = [
    ("deploy/nats/src/role.rs", "\"garage.", "the NATS rights, which must not depend on the code that they restrict"),
    ("deploy/nats/src/role.rs", "\"report.", "also NATS rights"),
    ("deploy/nats/src/role.rs", "\"timer.", "also NATS rights"),
    ("gateway/src/upgrade.rs", "\"garage.v1\"", "the name of the WebSocket subprotocol, not a subject"),
];

#[test]
fn only_the_crate_events_builds_subjects_and_keys() {
    let (mut wrong, mut needed) = (Vec::new(), BTreeSet::new());
    for source in sources().into_iter().filter(|source| !source.is_test() && !source.path.starts_with("events/src/")) {
        for (number, line) in source.shipped_lines() {
            if !["\"garage.", "\"report.", "\"timer.", "\"garage:"].iter().any(|start| line.contains(start)) {
                continue;
            }
            let allowed = |(file, text, _): &&(&str, &str, &str)| *file == source.path && line.contains(text);
            match NAMES_ELSEWHERE.iter().find(allowed) {
                Some((file, text, _)) => drop(needed.insert((*file, *text))),
                None => wrong.push(format!("{}:{number}: {}", source.path, line.trim())),
            }
        }
    }
    assert_none(&wrong, "use or add a function of events::subject or events::projection");
    let idle = NAMES_ELSEWHERE.iter().filter(|(file, text, _)| !needed.contains(&(*file, *text)));
    let idle: Vec<_> = idle.map(|(file, text, _)| format!("{file}: {text}")).collect();
    assert_none(&idle, "this exception is no longer needed: remove it from NAMES_ELSEWHERE");
}

#[test]
fn only_marked_adapters_read_the_clock_and_generate_ids() {
    let mut wrong = Vec::new();
    // This file contains the names that it searches for.
    for source in sources().into_iter().filter(|source| source.path != "events/tests/tidy.rs") {
        let lines: Vec<_> = source.text.lines().collect();
        for (number, line) in source.lines() {
            let reads = ["SystemTime::now", "Utc::now", "now_utc", "Uuid::new_v4", "now_v7"];
            if reads.iter().any(|read| line.contains(read)) && !expected(&lines, number - 1) {
                wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert_none(
        &wrong,
        "take the time and the id as arguments, or from an Env. An adapter that reads the system's clock or generates \
         ids needs #[expect(clippy::disallowed_methods, reason = \"…\")] on its function or statement",
    );
}

/// Whether the statement on this line, or the function around it, has the attribute that allows disallowed methods.
fn expected(lines: &[&str], at: usize) -> bool {
    let above = lines.iter().take(at + 1).rev();
    let mut inside = true;
    for line in above.map(|line| line.trim()) {
        if line.contains("expect(clippy::disallowed_methods") {
            return true;
        }
        // Above the function, only attributes and comments belong to the function.
        if !inside && (line.is_empty() || line.ends_with(['}', ';', '{', ','])) {
            return false;
        }
        if line.split_whitespace().any(|word| word == "fn") {
            inside = false;
        }
    }
    false
}

#[test]
fn integration_tests_are_marked_as_tests() {
    let roots = sources().into_iter().filter(|source| {
        let parts: Vec<_> = source.path.split('/').collect();
        matches!(parts[..], [.., "tests", file] if file != "tests.rs")
            || matches!(parts[..], [.., "tests", _, "main.rs"])
    });
    let unmarked = roots.filter(|source| !source.path.contains("/src/") && !source.text.contains("#![cfg(test)]\n"));
    let unmarked = unmarked.map(|source| source.path).collect::<Vec<_>>();
    assert_none(
        &unmarked,
        "begin the file with #![cfg(test)], so that clippy applies the exceptions for tests to all its functions",
    );
}

// Words.

/// Words that must not be used, because the field has a standard term. `letter` is allowed after `dead`.
const RETIRED: [&str; 28] = [
    "books", "buried", "buries", "bury", "door", "doors", "fate", "fates", "ground", "grounds", "letter", "letters",
    "patience", "seat", "seats", "told", "vain", "ware", "wares", "wish", "wished", "wishes", "world", "worlds", "he",
    "his", "him", "whoever",
];

/// Phrases that must not be used, for the same reason.
const RETIRED_PHRASES: [&str; 6] = ["gave up", "give up", "given up", "gives up", "let go", "lets go"];

/// Serialised names that contain a retired word and cannot change: the text, and where it is serialised.
const SERIALISED: [(&str, &str); 15] = [
    ("GARAGE_POD_PATIENCE_S", "variable"),
    ("pod-patience", "flag"),
    ("garage:letters", "Redis key"),
    ("\"letter\"", "field of a dead letter in Redis, in requests and in `garage dead --json`"),
    ("\"buried\"", "field of a dead letter"),
    ("`letter`", "field of a dead letter, in documentation"),
    ("`buried`", "field of a dead letter, in documentation"),
    ("letter, buried", "fields of a dead letter, in help texts"),
    ("\\\"letter\\\"", "field of a dead letter, in a string"),
    ("\"letters\"", "field of the dashboard's data"),
    (".letters", "field of the dashboard's data, in its script"),
    (".letter,", "field of the dashboard's data, in its script"),
    (".letter)", "field of the dashboard's data, in its script"),
    ("\"told\"", "rule of `garage verify --json`"),
    ("`told`", "rule of `garage verify`, in documentation"),
];

/// The words of a line in lower case, including the parts of `snake_case` and `CamelCase` identifiers.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for token in line.split(|c: char| !c.is_alphanumeric()) {
        let mut word = String::new();
        let mut previous = ' ';
        for c in token.chars() {
            if c.is_uppercase() && previous.is_lowercase() {
                words.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
            previous = c;
        }
        words.push(word);
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The retired words of a line.
fn retired(line: &str) -> Vec<String> {
    let words = words(line);
    let mut previous = "";
    let mut found = Vec::new();
    for word in &words {
        let dead_letter = word.starts_with("letter") && previous == "dead";
        if RETIRED.contains(&word.as_str()) && !dead_letter {
            found.push(word.clone());
        }
        previous = word;
    }
    let line = line.to_lowercase().replace('_', " ");
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let has = |phrase: &str| line.split(phrase).skip(1).any(ends);
    found.extend(RETIRED_PHRASES.into_iter().filter(|phrase| has(phrase)).map(str::to_owned));
    found
}

#[test]
fn retired_words_are_found_in_prose_and_in_identifiers() {
    for (line, expected) in [
        ("a ticket request waits at the gate", vec![]),
        ("dead letters, DeadLetter, dead_letter and GARAGE_DEAD_LETTERS", vec![]),
        ("in the background, aware of hardware, the others", vec![]),
        ("let gone = is_good();", vec![]),
        ("A letter: whoever gave up his wish", vec!["letter", "whoever", "his", "wish", "gave up"]),
        ("fn a_ticket_is_given_up() {", vec!["given up"]),
        ("let queue_door = QueueDoors::of(world);", vec!["door", "doors", "world"]),
    ] {
        assert_eq!(retired(line), expected, "{line}");
    }
}

#[test]
fn no_file_contains_a_retired_word() {
    let kinds = ["rs", "md", "json", "yaml", "toml", "sh", "py", "html", "js", "lua"];
    let is_text = |file: &String| Path::new(file).extension().is_some_and(|kind| kinds.iter().any(|one| kind == *one));
    // Recorded answers of a real cluster, and this file with the list itself.
    // SQL is not read: migrations cannot change, as databases store their checksums.
    let is_exempt = |file: &String| file.contains("/recorded/") || file == "events/tests/tidy.rs";
    let (mut wrong, mut needed) = (Vec::new(), BTreeSet::new());
    for file in walk().into_iter().filter(|file| is_text(file) && !is_exempt(file)) {
        for (number, line) in (1..).zip(read(&file).lines()) {
            if retired(line).is_empty() {
                continue;
            }
            needed.extend(SERIALISED.iter().filter(|(text, _)| line.contains(text)).map(|(text, _)| *text));
            let rest = SERIALISED.iter().fold(line.to_owned(), |line, (text, _)| line.replace(text, " "));
            let found = retired(&rest);
            if !found.is_empty() {
                wrong.push(format!("{file}:{number}: {}: {}", found.join(", "), line.trim()));
            }
        }
    }
    assert_none(&wrong, "use the standard term; add a serialised name to SERIALISED, in events/tests/tidy.rs");
    let idle = SERIALISED.iter().filter(|(text, _)| !needed.contains(text)).map(|(text, _)| (*text).to_owned());
    assert_none(&idle.collect::<Vec<_>>(), "this exception is no longer needed: remove it from SERIALISED");
}

// Samples.

#[test]
fn the_folder_of_samples_contains_only_samples() {
    let token = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let is_sample = |file: &str| match file.strip_prefix("events/golden/").unwrap().split('.').collect::<Vec<_>>()[..] {
        [aggregate, event, version, "json"] | [aggregate, event, version, _, "json"] => {
            let version = version.strip_prefix('v').and_then(|version| version.parse::<u32>().ok());
            ["player", "session", "inventory", "party"].contains(&aggregate)
                && token(event)
                && version.is_some_and(|v| v > 0)
        }
        _ => false,
    };
    let files: Vec<_> = walk().into_iter().filter(|file| file.starts_with("events/golden/")).collect();
    assert!(!files.is_empty(), "events/golden contains no sample");
    let stray = files.into_iter().filter(|file| !is_sample(file));
    assert_none(
        &stray.collect::<Vec<_>>(),
        "the name of a sample is <aggregate>.<event>.v<version>.json, or has another word before .json; move other files to another folder",
    );
}
