//! RabbitMQ: the only place that speaks AMQP.
//!
//! In reading order:
//!
//! - `topology` — every queue, its role and its arguments: the whole story of the broker in one table.
//! - `address` — where the broker is: a checked AMQP URL that never shows its password.
//! - `connect` — opening a connection, what a refusal means, and the words that are logged while the broker is away.
//! - `delivery` — one message at this worker: its body, its marks, and the two ways to settle it.
//! - `settling` — which deliveries are settled, so that acknowledgements share frames.
//! - `consume` — deliveries from the work queue, across reconnects, on a connection that never publishes.
//! - `letter` — one message to be sent: fresh, or the copy of a delivery.
//! - `dead` — what the dead queue holds, looked at and given back, or taken away by an operator; `parked` — one message of it.
//! - `health`, `management` — facts for whoever checks the broker, over AMQP and over its management API.
//! - `words` — names as others read them: in a URL, in a shell.
//! - `publish` — confirmed sends, on a connection of their own: a broker that blocks publishers still takes acknowledgements.
//!
//! What is absent on purpose: no type of the AMQP client leaves this folder; the client's own recovery is off, since
//! a stream that neither ends nor fails while the broker is away cannot be reported; nothing here decides whether a
//! delivery is acknowledged.

mod address;
mod connect;
mod consume;
mod dead;
mod delivery;
mod error;
mod health;
mod letter;
mod management;
mod parked;
mod publish;
mod settling;
mod topology;
mod words;

pub use address::Address;
pub use connect::Identity;
pub use consume::Consumer;
pub use dead::DeadQueue;
pub use delivery::{Delivery, Marks, Settled};
pub use error::{BrokerError, SendError};
pub(crate) use health::{BrokerHealth, Publishing, QueueDepths, look, version};
pub use letter::Letter;
pub(crate) use management::{ManagedQueue, Management, Node, Permission, base64};
pub use parked::Parked;
pub use publish::Publisher;
pub use topology::{Place, QueueSpec, QueueState, Topology};
pub(crate) use words::shell_word;
