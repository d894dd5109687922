//! What shells and `man` are given: made from the commands themselves, without settings or services.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use crate::support::binary::Binary;

const COMMANDS: [&str; 15] = [
    "work",
    "publish",
    "jobs",
    "show",
    "retry",
    "cancel",
    "skip",
    "dead",
    "prune",
    "migrate",
    "bench",
    "doctor",
    "topology",
    "completions",
    "man",
];

/// What bash offers for a line that ends in the word to be completed.
fn offered(folder: &Path, words: &[&str]) -> BTreeSet<String> {
    let script = r#"
        set -eu
        source <("$CLIQUET" completions bash)
        # As bash itself finds it: the function that is registered for the command.
        function=$(complete -p cliquet | sed -n 's/.* -F \([^ ]*\) .*/\1/p')
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        "$function" cliquet "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .args(words)
        .env("CLIQUET", env!("CARGO_BIN_EXE_cliquet"))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let offered = String::from_utf8(output.stdout).unwrap();
    offered.lines().map(str::to_owned).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn bash_completes_commands_options_and_their_values() {
    let binary = Binary::bare();
    // Settings that are wrong are in nobody's way.
    let folder = binary.file("cliquet.toml", "nonsense = 7\n");
    let folder = folder.parent().unwrap();
    assert_eq!(offered(folder, &["cliquet", "mig"]), set(&["migrate"]));
    assert_eq!(offered(folder, &["cliquet", "dead", "re"]), set(&["retry"]));
    assert_eq!(
        offered(folder, &["cliquet", "jobs", "--st"]),
        set(&["--status"])
    );
    assert_eq!(
        offered(folder, &["cliquet", "completions", ""]),
        set(&["bash", "zsh", "fish", "--config", "--json", "--help", "-h"])
    );
    let all = offered(folder, &["cliquet", ""]);
    for command in COMMANDS {
        assert!(all.contains(command), "{command}: {all:?}");
    }
    assert!(
        !all.contains("bench-worker"),
        "it is nobody's command: {all:?}"
    );
}

#[tokio::test]
async fn every_shell_is_given_every_command() {
    let binary = Binary::bare();
    for (shell, sign) in [
        ("bash", "complete -F _cliquet"),
        ("zsh", "#compdef cliquet"),
        ("fish", "complete -c cliquet"),
    ] {
        let script = binary.run(&["completions", shell]).await.done();
        for words in COMMANDS.iter().copied().chain([sign]) {
            // bash registers its function in two ways, by its version.
            let found = script.contains(words) || words == sign && script.contains("complete -F");
            assert!(found, "{shell} lacks {words:?}");
        }
        assert!(!script.contains("bench-worker"), "{shell}");
    }
    binary.run(&["completions", "tcsh"]).await.failed(2);
}

#[tokio::test]
async fn there_is_a_manual_page_for_each_command_with_its_options_and_examples() {
    let binary = Binary::bare();
    let folder = binary.file("cliquet.toml", "nonsense = 7\n");
    let pages = folder.parent().unwrap().join("man/man1");
    let printed = binary
        .run(&["man", "--dir", pages.to_str().unwrap()])
        .await
        .done();
    let written: BTreeSet<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(printed.lines().count(), written.len());
    for command in COMMANDS {
        let name = format!("cliquet-{command}.1");
        assert!(written.contains(&name), "{name}: {written:?}");
    }
    for name in [
        "cliquet.1",
        "cliquet-dead-list.1",
        "cliquet-topology-verify.1",
    ] {
        assert!(written.contains(name), "{name}: {written:?}");
    }
    assert!(!written.contains("cliquet-bench-worker.1"));

    for name in &written {
        let page = fs::read_to_string(pages.join(name)).unwrap();
        for part in [".TH ", ".SH NAME\n", ".SH SYNOPSIS\n", ".SH OPTIONS\n"] {
            assert!(page.contains(part), "{name} lacks {part:?}");
        }
        assert_eq!(
            page.matches("\n.nf\n").count(),
            page.matches("\n.fi\n").count(),
            "{name}: what stands as it is ends"
        );
        // A line of text that began like a request would vanish, and an apostrophe with it.
        for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line[1..].split(' ').next().unwrap();
            let known = [
                "TH", "SH", "TP", "PP", "RS", "RE", "IP", "nf", "fi", "br", "ie", "el", "ds",
            ];
            assert!(known.contains(&request), "{name}: {line}");
        }
    }
    let jobs = fs::read_to_string(pages.join("cliquet-jobs.1")).unwrap();
    for words in [
        "\\-\\-status",
        ".SH EXAMPLES\n",
        "how many there are in each status",
    ] {
        assert!(jobs.contains(words), "{words}: {jobs}");
    }
    let main = binary.run(&["man"]).await.done();
    assert_eq!(main, fs::read_to_string(pages.join("cliquet.1")).unwrap());
    for words in [
        ".SH ENVIRONMENT\n",
        ".SH \"EXIT STATUS\"\n",
        "DATABASE_URL",
        "cliquet\\-dead(1)",
    ] {
        assert!(main.contains(words), "{words}: {main}");
    }
}
