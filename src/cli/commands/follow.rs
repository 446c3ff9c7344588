//! A watch that is read message by message, and goes on where it was after it broke. Key type: [`Changes`].
//!
//! `wait`, `events` and `run` read it. Nothing is missed and nothing repeated: a broken watch is opened again with the token
//! of the last message. One that broke within its snapshot begins anew.

use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::api::v1;
use crate::api::v1::virtual_machine_service_client::VirtualMachineServiceClient;

use super::super::client::Client;
use super::super::failure::Failure;

/// How long a daemon may be gone: it starts anew within seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const STEP: Duration = Duration::from_millis(500);

/// An open watch.
#[derive(Debug)]
pub(super) struct Changes {
    vms: VirtualMachineServiceClient<Channel>,
    request: v1::WatchVirtualMachinesRequest,
    stream: Streaming<v1::WatchVirtualMachinesResponse>,
}

impl Changes {
    /// Begins with all VMs of `parent`, or behind `resume_token` if it is not empty.
    pub(super) async fn open(client: &Client, parent: String, resume_token: String) -> Result<Self, Failure> {
        let mut vms = client.vms.clone();
        let request = v1::WatchVirtualMachinesRequest { parent, resume_token };
        let stream = vms.watch_virtual_machines(request.clone()).await?.into_inner();
        Ok(Self { vms, request, stream })
    }

    /// The next message: a change, or a bookmark. May be dropped while it waits, and called again.
    pub(super) async fn next(&mut self) -> Result<v1::WatchVirtualMachinesResponse, Failure> {
        loop {
            match self.stream.message().await {
                Ok(Some(message)) => {
                    if !message.resume_token.is_empty() {
                        self.request.resume_token.clone_from(&message.resume_token);
                    }
                    return Ok(message);
                }
                Err(status) if !is_passing(&status) => return Err(lost(status)),
                Ok(None) | Err(_) => self.reopen().await?,
            }
        }
    }

    /// Fails as the last attempt did, once the daemon stayed away for too long.
    async fn reopen(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.vms.watch_virtual_machines(self.request.clone()).await {
                Ok(stream) => {
                    self.stream = stream.into_inner();
                    return Ok(());
                }
                Err(status) if is_passing(&status) && Instant::now() < end => tokio::time::sleep(STEP).await,
                Err(status) => return Err(lost(status)),
            }
        }
    }
}

/// Whether trying again may help: the connection broke, the daemon is about to end, or this reader was too slow.
fn is_passing(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || matches!(status.code(), Code::Unavailable | Code::Aborted)
}

/// A watch that cannot go on.
fn lost(status: Status) -> Failure {
    let is_forgotten = status.code() == Code::OutOfRange;
    let failure = Failure::from(status);
    if is_forgotten { failure.hint("watch anew, without --resume") } else { failure }
}
