//! The OpenAPI document and the API are the same thing: schemathesis puts requests of all sorts, right and wrong ones, and
//! compares each answer with what the document says.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::support::{
    binary::Binary,
    http::{TOKEN, Web},
    stage::Stage,
};

/// Where `deploy/dev test` puts it.
fn schemathesis() -> PathBuf {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/dev-schemathesis");
    let program = place.join("bin/schemathesis");
    assert!(
        program.exists(),
        "schemathesis is not at {}: `deploy/dev test` puts it there, and so does: python3 -m venv {place} && {place}/bin/pip install schemathesis==4.32.5",
        program.display(),
        place = place.display()
    );
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says_whatever_is_asked() {
    let stage = Stage::new().await;
    let mut binary = Binary::on(&stage, "");
    binary.set("CLIQUET_HTTP_TOKEN", TOKEN);
    let web = Web::start(&binary).await;
    // Something to look at, of every sort.
    let worker = stage.worker();
    for (scenario, status) in [
        ("a:ok", "SUCCESS"),
        ("a:ok b:permanent", "FAILED"),
        ("c:after:60000", "RETRYING"),
    ] {
        let job = stage.publish(scenario).await;
        stage.reaches(job, status).await;
    }
    let document = web.client.get("/api/v1/openapi.json").await.json(200);
    let paths = document["paths"].as_object().unwrap();
    let methods = |method: &str| {
        paths
            .values()
            .filter(|path| path.get(method).is_some())
            .count()
    };
    assert_eq!((methods("get"), methods("post")), (8, 5));
    let binary = schemathesis();
    let url = format!("http://{}/api/v1/openapi.json", web.client.address);
    let run = tokio::task::spawn_blocking(move || {
        Command::new(binary)
            .args([
                "run",
                &url,
                "--checks",
                "all",
                "--phases",
                "examples,coverage,fuzzing",
            ])
            // Streams of events have no end; they have tests of their own.
            .args(["--exclude-path-regex", "/events$"])
            .args([
                "--max-time",
                "50",
                "--max-examples",
                "15",
                "--seed",
                "7",
                "--workers",
                "1",
                "--request-timeout",
                "15",
            ])
            .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
            .args([
                "--generation-database",
                "none",
                "--suppress-health-check",
                "all",
                "--no-color",
            ])
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .output()
            .unwrap()
    });
    let ran = run.await.unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    println!("{told}");
    worker.stop().await;
    let _: Value = web.client.get("/api/v1/jobs").await.json(200);
}
