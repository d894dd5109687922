//! A private pair of services for a test that restarts them: nothing that other tests use is touched.

use std::{fs, io::Write, path::PathBuf, process::Command};

use uuid::Uuid;

/// A RabbitMQ and a Postgres of one's own; gone at the end.
pub struct Services {
    folder: PathBuf,
    pub amqp_url: String,
    pub database_url: String,
}

impl Services {
    /// Starts both; takes some ten seconds.
    pub fn start() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("target/dev-{}", Uuid::new_v4().simple()));
        let mut services = Self {
            folder,
            amqp_url: String::new(),
            database_url: String::new(),
        };
        services.run(&["up"]);
        let told = services.run(&["env"]);
        let variable = |name: &str| {
            let line = told
                .lines()
                .find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("deploy/dev env does not tell {name}: {told}"))
                .trim_matches('\'')
                .to_owned()
        };
        (services.amqp_url, services.database_url) =
            (variable("AMQP_URL"), variable("DATABASE_URL"));
        services
    }

    /// `deploy/dev restart SERVICE` and the like.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/dev"))
            .arg("--at")
            .arg(&self.folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "deploy/dev {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Services {
    /// Restarts RabbitMQ with its plugin for Prometheus, which tells its metrics on this port.
    pub fn tell_rabbitmqs_metrics(&self, port: u16) {
        let folder = self.folder.join("data/rabbitmq");
        let plugins = "[rabbitmq_management, rabbitmq_prometheus].\n";
        fs::write(folder.join("enabled_plugins"), plugins).unwrap();
        let mut settings = fs::OpenOptions::new()
            .append(true)
            .open(folder.join("rabbitmq.conf"))
            .unwrap();
        writeln!(
            settings,
            "prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}"
        )
        .unwrap();
        self.run(&["restart", "rabbitmq"]);
    }

    /// Kills RabbitMQ and deletes all its data; it is not started again.
    pub fn lose_the_brokers_disk(&self) {
        self.run(&["kill", "rabbitmq"]);
        std::fs::remove_dir_all(self.folder.join("data/rabbitmq/mnesia")).unwrap();
    }

    /// What RabbitMQ has logged.
    pub fn brokers_log(&self) -> String {
        let log = std::fs::read(self.folder.join("data/log/rabbitmq.log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let _ = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/dev"))
            .arg("--at")
            .arg(&self.folder)
            .arg("down")
            .output();
    }
}
