//! Every key there is. One table serves the file, the environment and the advice on a misspelt key.

use std::path::PathBuf;

use super::{Config, HandlerConfig, given::Given, http_address};
use crate::retry::{Ladder, RetryPolicy};

/// A key of one section, and what it sets.
pub(super) struct Key<T> {
    pub(super) name: &'static str,
    pub(super) set: fn(&mut T, &Given<'_>) -> Result<(), String>,
}

/// The keys outside of any section.
pub(super) const WORKER: &[Key<Config>] = &[
    Key {
        name: "amqp_url",
        set: |config, given| given.text().map(|text| config.amqp_url = text),
    },
    Key {
        name: "database_url",
        set: |config, given| given.text().map(|text| config.database_url = text),
    },
    Key {
        name: "queue",
        set: |config, given| given.text().map(|text| config.queue = text),
    },
    Key {
        name: "name",
        set: |config, given| given.text().map(|text| config.name = text),
    },
    Key {
        name: "concurrency",
        set: |config, given| given.whole().map(|number| config.concurrency = number),
    },
    Key {
        name: "drain_timeout",
        set: |config, given| given.duration().map(|delay| config.drain_timeout = delay),
    },
    Key {
        name: "ladder",
        set: |config, given| {
            let ladder =
                Ladder::try_from(given.texts()?).map_err(|sentence| given.refuse(&sentence))?;
            config.ladder = ladder;
            Ok(())
        },
    },
    Key {
        name: "heartbeat",
        set: |config, given| given.duration().map(|delay| config.heartbeat = delay),
    },
    Key {
        name: "patience",
        set: |config, given| given.duration().map(|delay| config.patience = delay),
    },
    Key {
        name: "crash_limit",
        set: |config, given| given.whole().map(|number| config.crash_limit = number),
    },
    Key {
        name: "brake_after",
        set: |config, given| given.whole().map(|number| config.brake_after = number),
    },
    Key {
        name: "probe_every",
        set: |config, given| given.duration().map(|delay| config.probe_every = delay),
    },
    Key {
        name: "hand_over_after",
        set: |config, given| given.duration().map(|delay| config.hand_over_after = delay),
    },
    Key {
        name: "reconcile_every",
        set: |config, given| given.duration().map(|delay| config.reconcile_every = delay),
    },
    Key {
        name: "prune_after",
        set: |config, given| given.duration().map(|age| config.prune_after = Some(age)),
    },
    Key {
        name: "prune_status",
        set: |config, given| {
            let statuses = given.texts()?;
            let statuses = statuses.iter().map(|status| status.parse());
            config.prune_status = statuses
                .collect::<Result<_, String>>()
                .map_err(|sentence| given.refuse(&sentence))?;
            Ok(())
        },
    },
    Key {
        name: "lanes",
        set: |config, given| given.whole().map(|number| config.lanes = number),
    },
    Key {
        name: "publishers",
        set: |config, given| given.whole().map(|number| config.publishers = number),
    },
    Key {
        name: "handler_connections",
        set: |config, given| {
            given
                .whole()
                .map(|number| config.handler_connections = number)
        },
    },
    Key {
        name: "http",
        set: |config, given| {
            let address =
                http_address(&given.text()?).map_err(|sentence| given.refuse(&sentence))?;
            config.http = Some(address);
            Ok(())
        },
    },
    Key {
        name: "redact",
        set: |config, given| given.texts().map(|paths| config.redact = paths),
    },
    Key {
        name: "declare",
        set: |config, given| given.truth().map(|truth| config.declare = truth),
    },
];

/// The keys of `[retry]` and of `[handlers.NAME.retry]`.
pub(super) const RETRY: &[Key<RetryPolicy>] = &[
    Key {
        name: "max_attempts",
        set: |retry, given| given.whole().map(|number| retry.max_attempts = number),
    },
    Key {
        name: "initial",
        set: |retry, given| given.duration().map(|delay| retry.initial = delay),
    },
    Key {
        name: "max",
        set: |retry, given| given.duration().map(|delay| retry.max = delay),
    },
    Key {
        name: "multiplier",
        set: |retry, given| given.number().map(|number| retry.multiplier = number),
    },
    Key {
        name: "jitter",
        set: |retry, given| given.number().map(|number| retry.jitter = number),
    },
];

/// The keys of `[handlers.NAME]`. `max_attempts`, which also stands there, is the policy's and kept in [`RETRY`].
pub(super) const HANDLER: &[Key<HandlerConfig>] = &[
    Key {
        name: "exec",
        set: |handler, given| given.texts().map(|texts| handler.exec = texts),
    },
    Key {
        name: "dir",
        set: |handler, given| {
            given
                .text()
                .map(|text| handler.dir = Some(PathBuf::from(text)))
        },
    },
    Key {
        name: "env",
        set: |handler, given| {
            let names = given.texts()?;
            if let Some(name) = names
                .iter()
                .find(|name| name.is_empty() || name.contains(['=', '\0']))
            {
                return Err(given.refuse(&format!(
                    "{name:?} is not the name of an environment variable; `env` lists names, and the program is given the worker's values"
                )));
            }
            handler.env = names;
            Ok(())
        },
    },
    Key {
        name: "output_limit",
        set: |handler, given| {
            let limit: usize = given.whole()?;
            if !(1..=64 * 1024 * 1024).contains(&limit) {
                return Err(given.refuse(&format!(
                    "`output_limit` is {limit} bytes; expected 1 to 67108864 (64 MiB)"
                )));
            }
            handler.output_limit = Some(limit);
            Ok(())
        },
    },
    Key {
        name: "timeout",
        set: |handler, given| {
            given
                .duration()
                .map(|delay| handler.options.timeout = Some(delay))
        },
    },
    Key {
        name: "brake_after",
        set: |handler, given| {
            given
                .whole()
                .map(|number| handler.options.brake_after = Some(number))
        },
    },
];
