//! The house rules that can be read off the source: who may speak to whom, and what the README promises.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cliquet::metrics::{ALL, Kind, Metric};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder, with its text; tests that live beside the code are left out.
fn sources(folder: &str) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn code(text: &str) -> String {
    let beside_tests = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let lines = beside_tests
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Files whose code has one of the words, outside the places where it may stand.
fn trespassers(words: &[&str], allowed: &[&str]) -> Vec<String> {
    sources("src")
        .into_iter()
        .filter(|(name, _)| {
            !allowed.iter().any(|place| name.starts_with(place)) && !name.contains("/tests")
        })
        .filter(|(_, text)| words.iter().any(|word| code(text).contains(word)))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn sql_is_written_in_the_ledger_only() {
    assert_eq!(
        trespassers(
            &["sqlx::query", "raw_sql(", "SELECT ", "cliquet.jobs"],
            &["src/ledger/"]
        ),
        [""; 0]
    );
}

#[test]
fn amqp_is_spoken_in_the_broker_only() {
    assert_eq!(
        trespassers(
            &["lapin::", "basic_publish", "BasicProperties"],
            &["src/broker/"]
        ),
        [""; 0]
    );
}

#[test]
fn only_settling_acknowledges() {
    assert_eq!(
        trespassers(
            &[".acknowledge()", ".requeue()"],
            &["src/worker/settlement.rs", "src/broker/delivery.rs"]
        ),
        [""; 0]
    );
}

#[test]
fn only_the_ledger_commits() {
    assert_eq!(
        trespassers(&[".commit()", "\"COMMIT\""], &["src/ledger/"]),
        [""; 0]
    );
}

#[test]
fn backoff_is_named_in_one_file() {
    assert_eq!(trespassers(&["backoff::"], &["src/retry.rs"]), [""; 0]);
}

#[test]
fn opentelemetry_is_named_in_telemetry_only() {
    assert_eq!(
        trespassers(&["opentelemetry"], &["src/telemetry/traces"]),
        [""; 0]
    );
    // The exporter, and the benchmark's browsers.
    let clients = ["src/telemetry/traces", "src/ops/bench/browsers.rs"];
    assert_eq!(trespassers(&["reqwest"], &clients), [""; 0]);
}

#[test]
fn http_is_spoken_in_one_folder() {
    assert_eq!(
        trespassers(
            &["axum::", "hyper::", "hyper_util", "maud::"],
            &["src/ops/web"]
        ),
        [""; 0]
    );
}

/// In a release build there is no fail point, nor any name of one: whatever names them stands behind `debug_assertions`.
#[test]
fn fail_points_are_not_in_a_release_build() {
    let manifest: toml::Table = std::fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    for (name, profile) in manifest["profile"].as_table().unwrap() {
        assert!(
            profile.get("debug-assertions").is_none(),
            "the profile {name} says something of debug-assertions"
        );
    }
    let all = sources("src");
    let (_, own) = all
        .iter()
        .find(|(name, _)| name == "src/fail_point.rs")
        .unwrap();
    // Its items, and the arms of the macro that is left: each begins at the margin or is a statement of an arm.
    let (mut guarded, mut items) = (false, 0);
    let code = code(own);
    for line in code.lines().map(str::trim_end) {
        let item = !line.is_empty() && !line.starts_with([' ', '}', '#', ')']);
        if item && !line.starts_with("macro_rules! cut ") && line != "pub(crate) use cut;" {
            assert!(guarded, "without #[cfg(debug_assertions)]: {line}");
            items += 1;
        }
        if !line.is_empty() {
            guarded = line == "#[cfg(debug_assertions)]";
        }
    }
    assert!(items >= 4, "{items}");
    let cut = code.split("macro_rules! cut {").nth(1).unwrap();
    let cut = cut.split("\n}").next().unwrap();
    assert_eq!(
        cut.matches("=> {\n        #[cfg(debug_assertions)]\n")
            .count(),
        cut.matches("=> {").count()
    );
    assert_eq!(cut.matches(".pass()").count(), 2);
    // Elsewhere they are named through the macro alone.
    for (name, text) in &all {
        assert!(
            name == "src/fail_point.rs" || !self::code(text).contains("FailPoint"),
            "{name} names a fail point without the macro"
        );
    }
}

#[test]
fn metrics_are_named_in_one_file_and_given_to_prometheus_in_another() {
    let counted = ["metrics::counter!", "register_counter", "\"cliquet_"];
    assert_eq!(trespassers(&counted, &["src/metrics"]), [""; 0]);
    assert_eq!(
        trespassers(
            &["metrics_exporter_prometheus"],
            &["src/telemetry/metrics.rs"]
        ),
        [""; 0]
    );
}

/// Prometheus's conventions: base units and no other, `_total` for what only grows.
#[test]
fn the_names_of_metrics_tell_what_they_are() {
    for metric in ALL {
        let (name, counter) = (metric.name, metric.kind == Kind::Counter);
        assert!(name.starts_with("cliquet_"), "{name}");
        assert_eq!(name.ends_with("_total"), counter, "{name}");
        let seconds = name.ends_with("_seconds");
        assert_eq!(seconds, metric.unit == metrics::Unit::Seconds, "{name}");
        assert!(!metric.help.ends_with('.'), "{name}: {}", metric.help);
        let twice = ALL.iter().filter(|other| other.name == name);
        assert_eq!(twice.count(), 1, "{name} is there twice");
    }
}

/// The README's table of metrics is the code's.
#[test]
fn the_readme_tells_every_metric() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let told: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with("| `cliquet_"))
        .collect();
    let row = |metric: &Metric| {
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        format!(
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            metric.help
        )
    };
    assert_eq!(told, ALL.iter().map(row).collect::<Vec<_>>());
}

/// A counter that is there before its first increment is seen to increase; so every reason has one.
#[test]
fn every_reason_for_parking_has_a_counter() {
    let all = sources("src");
    let own = &all
        .iter()
        .find(|(name, _)| name == "src/metrics/table.rs")
        .unwrap()
        .1;
    let listed = own.split("const REASONS").nth(1).unwrap();
    let listed = listed.split("];").next().unwrap();
    let mut reasons = Vec::new();
    for (name, text) in &all {
        let code = code(text);
        // Where a reason is given: as the first argument, or in words of its own.
        for call in [
            "BadMessage::new(",
            "park(",
            "Copy::park(generation,",
            "Some(\"crashed",
            "Err(reason.unwrap_or(",
            "most => Err(",
        ] {
            for rest in code.split(call).skip(1) {
                let rest = if call.starts_with("Some") {
                    "\"crashed\""
                } else {
                    rest.trim_start()
                };
                if let Some(literal) = rest.strip_prefix('"') {
                    reasons.push((name, literal.split('"').next().unwrap().to_owned()));
                }
            }
        }
    }
    assert!(reasons.len() >= 25, "{reasons:?}");
    for (file, reason) in reasons {
        assert!(
            listed.contains(&format!("\"{reason}\",")),
            "{file} parks with the reason {reason}, which src/metrics/table.rs does not list"
        );
    }
}

#[test]
fn imports_go_down_only() {
    // Lower floors first; nobody imports from a floor above.
    let floors: [&[&str]; 5] = [
        &["job", "metrics", "fail_point", "tls"],
        &["retry", "ledger", "broker"],
        &["task", "handlers", "config", "telemetry"],
        &["worker"],
        &["ops"],
    ];
    let floor_of = |module: &str| floors.iter().position(|floor| floor.contains(&module));
    for (name, text) in sources("src") {
        let module = name
            .trim_start_matches("src/")
            .split(['/', '.'])
            .next()
            .unwrap()
            .to_owned();
        let (Some(floor), false) = (floor_of(&module), name.contains("/tests")) else {
            continue;
        };
        let code = code(&text);
        let blocks: Vec<_> = code
            .split("use crate::{")
            .skip(1)
            .filter_map(|rest| rest.split("};").next())
            .collect();
        for (above, modules) in floors.iter().enumerate().skip(floor + 1) {
            for other in *modules {
                let imported = code.contains(&format!("crate::{other}::"))
                    || blocks
                        .iter()
                        .any(|block| block.contains(&format!("\n    {other}::")));
                assert!(
                    !imported,
                    "{name} (floor {floor}) imports {other} (floor {above})"
                );
            }
        }
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let mut tests = String::new();
    for folder in ["src", "tests"] {
        sources(folder)
            .iter()
            .for_each(|(_, text)| tests.push_str(text));
    }
    let readme = fs::read_to_string(Path::new(&root()).join("README.md")).unwrap();
    let prose: String = readme.split("```").step_by(2).collect();
    let promised: Vec<_> = prose
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            word.matches('_').count() >= 4
                && !word.starts_with("cliquet_") // a metric
                && word
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter == '_')
        })
        .collect();
    assert!(promised.len() >= 8, "{promised:?}");
    for name in promised {
        assert!(
            tests.contains(&format!("fn {name}(")),
            "the README promises {name}, and there is no such test"
        );
    }
}

#[test]
fn every_file_of_migrations_is_one_that_cliquet_migrate_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = fs::read_to_string(root.join("src/ledger/schema.rs")).unwrap();
    let files = fs::read_dir(root.join("migrations")).unwrap();
    let names: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.is_empty());
    for name in names {
        assert!(
            schema.contains(&format!("migrations/{name}\"")),
            "migrations/{name} is in no list: add it to src/ledger/schema.rs"
        );
    }
}
