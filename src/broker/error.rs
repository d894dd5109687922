//! What can go wrong with the broker: one variant for each way to recover.

/// Why the broker could not be used. Every variant is a way to recover; its text says what happened and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker did not answer, or hung up: waiting helps.
    #[error("RabbitMQ at {address} is away: {reason}")]
    Unreachable {
        /// Where it was looked for, without the password.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The broker answered and turned the connection away: user, password, virtual host or a limit.
    #[error(
        "RabbitMQ at {address} refuses the connection: {sentence}. Check the user name, the password and the virtual host of the address, and that this user may use this virtual host"
    )]
    Refused {
        /// Where it was looked for, without the password.
        address: String,
        /// What the broker said.
        sentence: String,
    },
    /// The TLS handshake failed: a certificate that is not to be trusted, or no TLS there at all.
    #[error("RabbitMQ at {address} is not to be trusted: {sentence}")]
    Untrusted {
        /// Where it was looked for, without the password.
        address: String,
        /// Why, and what to do about it.
        sentence: String,
    },
    /// A queue exists with other arguments than cliquet needs, or cannot be made with them.
    #[error("the queue `{queue}` is not as cliquet needs it: {sentence}. {remedy}")]
    Mismatch {
        /// The queue.
        queue: String,
        /// What the broker said.
        sentence: String,
        /// What to do about it.
        remedy: String,
    },
    /// A queue does not exist: declaring it was not asked for, or somebody has deleted it since.
    #[error(
        "the queue `{queue}` does not exist. `cliquet topology declare` makes it and the others (`cliquet topology definitions` prints them for `rabbitmqctl import_definitions`)"
    )]
    Missing {
        /// The queue.
        queue: String,
    },
    /// The user may not do this with the queue.
    #[error(
        "RabbitMQ does not permit it on the queue `{queue}`: {sentence}. `deploy/rabbitmq-permissions.sh` prints the `rabbitmqctl set_permissions` that a worker, a publisher or a reader needs"
    )]
    Denied {
        /// The queue.
        queue: String,
        /// What the broker said.
        sentence: String,
    },
}

impl BrokerError {
    /// Whether time alone may mend it: the broker is away, starting or restarting.
    pub fn waiting_helps(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Why a letter is not known to be in its queue. Every variant is a way to recover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The queue does not exist, and declaring it again did not help or is switched off. The letter is not sent.
    #[error("the queue `{queue}` does not exist; the message was returned. {remedy}")]
    Unroutable {
        /// The queue.
        queue: String,
        /// What to do about it.
        remedy: String,
    },
    /// The broker answered that it does not take the letter: the queue is full. The letter is not sent.
    #[error(
        "the queue `{queue}` refuses the message: it is full (a max-length policy) or has no quorum of nodes. Raise the limit, drain the queue or bring its nodes back"
    )]
    Refused {
        /// The queue.
        queue: String,
    },
    /// The user may not publish. The letter is not sent.
    #[error(
        "RabbitMQ does not permit publishing to the queue `{queue}`: {sentence}. The user needs the right to write to the default exchange, `amq.default`; `deploy/rabbitmq-permissions.sh` prints the command (`rabbitmqctl set_permissions`) for a publisher and for a worker"
    )]
    Denied {
        /// The queue.
        queue: String,
        /// What the broker said.
        sentence: String,
    },
    /// No connection, no answer in time, or the broker blocks publishers: the letter may or may not be sent.
    #[error("the message to the queue `{queue}` is not confirmed: {reason}")]
    Unavailable {
        /// The queue.
        queue: String,
        /// What happened.
        reason: String,
    },
    /// The letter exceeds a limit of the broker: it will never be sent as it is.
    #[error("the message to the queue `{queue}` is too large: {reason}")]
    TooLarge {
        /// The queue.
        queue: String,
        /// Which limit, and how large the letter is.
        reason: String,
    },
    /// The caller's token was cancelled first: the letter may or may not be sent.
    #[error("stopped before the message to the queue `{queue}` was confirmed: {reason}")]
    Cancelled {
        /// The queue.
        queue: String,
        /// What stood in the way until then.
        reason: String,
    },
}

impl SendError {
    /// Whether sending the same letter again may succeed.
    pub fn again_helps(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::Cancelled { .. })
    }
}
