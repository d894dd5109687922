//! TLS to both services, with certificates of a private authority: what is right is used, and whatever is wrong is refused
//! with a sentence that names the cause. Real listeners of services of the test's own.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;

use crate::support::{binary::Binary, eventually, free_port, services::Services, stage::Stage};

/// A certificate and its key, in PEM format.
struct Pair {
    certificate: String,
    key: String,
}

/// An authority of nobody's trust.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut about = CertificateParams::new(Vec::<String>::new()).unwrap();
        about
            .distinguished_name
            .push(DnType::CommonName, name.to_owned());
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(about, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for `localhost`, and for nothing else, until the end of a year.
    fn issue(&self, year: i32) -> Pair {
        let mut about = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        about.not_before = date_time_ymd(2019, 1, 1);
        about.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: about.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// What stands between the lines that begin and end a PEM.
fn bare(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

/// Has RabbitMQ listen with a certificate at each of these ports, too.
fn listen(services: &Services, listeners: &[(u16, &Pair)]) {
    let mut program =
        "[{ok, _} = application:ensure_all_started(A) || A <- [asn1, crypto, public_key, ssl]], "
            .to_owned();
    for (port, pair) in listeners {
        program.push_str(&format!(
            "rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, [{{cert, base64:decode(\"{}\")}}, {{key, {{'PrivateKeyInfo', base64:decode(\"{}\")}}}}, {{verify, verify_none}}], 1), ",
            bare(&pair.certificate),
            bare(&pair.key)
        ));
    }
    program.push_str("ok.");
    services.run(&["rabbitmqctl", "eval", &program]);
}

/// Has Postgres use a certificate from now on. The server itself writes the files: the key has to be its own user's.
async fn certify(database_url: &str, name: &str, pair: &Pair) {
    let mut admin = PgConnection::connect(database_url).await.unwrap();
    let write = |file: String, text: &str| {
        format!(
            "COPY (SELECT regexp_split_to_table('{text}', E'\\r?\\n')) TO PROGRAM 'umask 077; cat >{file}'"
        )
    };
    for statement in [
        write(format!("{name}.crt"), &pair.certificate),
        write(format!("{name}.key"), &pair.key),
        format!("ALTER SYSTEM SET ssl_cert_file = '{name}.crt'"),
        format!("ALTER SYSTEM SET ssl_key_file = '{name}.key'"),
        "ALTER SYSTEM SET ssl = on".to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut admin)
            .await
            .unwrap();
    }
    // Read again in its own time; whoever connects afterwards is given what was read.
    eventually("Postgres has read its settings again", async || {
        let mut next = PgConnection::connect(database_url).await.unwrap();
        let file: String = sqlx::query_scalar("SHOW ssl_cert_file")
            .fetch_one(&mut next)
            .await
            .unwrap();
        (file == format!("{name}.crt")).then_some(())
    })
    .await;
}

/// The address over TLS.
fn over_tls(url: &str, scheme: &str, host: &str, port: Option<u16>, query: &str) -> String {
    let rest = url.split_once("://").unwrap().1;
    let mut url = Url::parse(&format!("{scheme}://{rest}")).unwrap();
    url.set_host(Some(host)).unwrap();
    if let Some(port) = port {
        url.set_port(Some(port)).unwrap();
    }
    url.set_query(Some(query));
    url.into()
}

/// Neither the doctor nor a worker has a connection to this service, and both say so with these words.
async fn refused(binary: &Binary, service: &str, words: &[&str]) {
    let finding = format!(r#"{{"check":"{service}.connection","state":"problem""#);
    // A file that cannot be read is found before anybody connects.
    let wrong_use = "error: the file `";
    eventually(&format!("it is said that {words:?}"), async || {
        let ended = binary.run(&["doctor", "--json"]).await;
        let all = format!("{}{}", ended.out, ended.err);
        let said = all
            .lines()
            .find(|line| line.starts_with(&finding) || line.starts_with(wrong_use));
        let right = said.is_some_and(|said| words.iter().all(|word| said.contains(word)));
        if !right {
            println!("doctor said, for {words:?}: {all}");
        }
        right.then_some(())
    })
    .await;
    let mut worker = binary.work();
    let log = eventually(&format!("the worker says {words:?}"), async || {
        let log = binary.written("log").await;
        words.iter().all(|word| log.contains(word)).then_some(log)
    })
    .await;
    assert!(!log.contains("panicked"), "{log}");
    assert_ne!(worker.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_services_are_reached_over_tls_and_a_wrong_certificate_is_refused_with_its_cause() {
    let services = Services::start();
    let stage = Stage::on(&services.amqp_url, &services.database_url, &["200ms"]).await;
    let (authority, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    let (good, expired) = (authority.issue(2100), authority.issue(2020));
    let (port, stale_port) = (free_port(), free_port());
    listen(&services, &[(port, &good), (stale_port, &expired)]);

    let binary = |amqp: &str, database: &str| {
        let mut binary = Binary::on(&stage, "[handlers.a]\nexec = [\"true\"]\n");
        binary.addresses(amqp, database);
        binary
    };
    let files = Binary::bare();
    let pem = |name, authority: &Authority| {
        let file = files.file(name, &authority.0.pem());
        file.to_str().unwrap().to_owned()
    };
    let (ours, theirs) = (pem("ca.pem", &authority), pem("other.pem", &stranger));
    let empty = files.file("empty.pem", "nothing");
    let (plain_amqp, plain_database) = (&*stage.worker_amqp_url, &*stage.worker_database);
    let amqp = |host, port, file: &str| {
        let query = format!("cacertfile={file}");
        over_tls(plain_amqp, "amqps", host, Some(port), &query)
    };
    let database = |host, file: &str| {
        let query = format!("sslmode=verify-full&sslrootcert={file}");
        over_tls(plain_database, "postgres", host, None, &query)
    };

    // Not yet: no TLS there, or no file.
    let missing = "/nowhere/ca.pem";
    refused(
        &binary(plain_amqp, &database("localhost", &ours)),
        "postgres",
        &["does not speak TLS", "ssl = on"],
    )
    .await;
    refused(
        &binary(plain_amqp, &database("localhost", missing)),
        "postgres",
        &[missing, "sslrootcert", "cannot be read"],
    )
    .await;

    certify(&services.database_url, "good", &good).await;
    let works = binary(
        &amqp("localhost", port, &ours),
        &database("localhost", &ours),
    );
    let mut worker = works.work();
    let job = works.publish(r#"{"kind": "k", "tasks": ["a", "a"]}"#).await;
    stage.reaches(job, "SUCCESS").await;
    let encrypted: Vec<bool> = sqlx::query_scalar(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'cliquet %' AND usename = 'cliquet_test_worker'",
    )
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    assert_eq!(encrypted, [true]);
    let connections = services.run(&[
        "rabbitmqctl",
        "-q",
        "list_connections",
        "ssl",
        "client_properties",
    ]);
    let of_worker = connections
        .lines()
        .filter(|line| line.contains("cliquet worker"));
    assert!(
        of_worker.clone().count() >= 2 && of_worker.clone().all(|line| line.starts_with("true")),
        "{connections}"
    );
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));

    let good_database = database("localhost", &ours);
    let port_of = |url: &str| Url::parse(url).unwrap().port().unwrap();
    let wrong = [
        (
            amqp("127.0.0.1", port, &ours),
            &["not for the host name 127.0.0.1", "localhost"][..],
        ),
        (
            amqp("localhost", stale_port, &ours),
            &["expired on 2020-12-31"],
        ),
        (
            amqp("localhost", port, &theirs),
            &["authority that is not trusted", "cacertfile="],
        ),
        (
            over_tls(plain_amqp, "amqps", "localhost", Some(port), ""),
            &["authority that is not trusted"],
        ),
        (
            amqp("localhost", port, missing),
            &[missing, "cacertfile", "cannot be read"],
        ),
        (
            amqp("localhost", port, empty.to_str().unwrap()),
            &["empty.pem", "no certificate"],
        ),
        (
            amqp("localhost", port_of(plain_amqp), &ours),
            &["does not speak TLS"],
        ),
    ];
    let told = wrong.iter().map(|(url, words)| {
        let binary = binary(url, &good_database);
        async move { refused(&binary, "rabbitmq", words).await }
    });
    futures::future::join_all(told).await;
    let good_amqp = amqp("localhost", port, &ours);
    refused(
        &binary(&good_amqp, &database("127.0.0.1", &ours)),
        "postgres",
        &["not for the host name 127.0.0.1", "localhost"],
    )
    .await;
    refused(
        &binary(&good_amqp, &database("localhost", &theirs)),
        "postgres",
        &["authority that is not trusted", "sslrootcert="],
    )
    .await;
    certify(&services.database_url, "expired", &expired).await;
    refused(
        &binary(&good_amqp, &good_database),
        "postgres",
        &["expired on 2020-12-31"],
    )
    .await;
}
