//! The console stream: between a client and the vmm's socket. Key function: [`open`].

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::audit::{Audit, Change};
use super::call::within;
use super::vm::{Responses, vm_ref};
use super::{Ending, ended, status};
use crate::api::v1::{self, ConsoleRequest, ConsoleResponse};
use crate::daemon::service::{Console, Identity, ServiceError, SharedNode, Window};
use crate::model::{SpecError, WindowSize};

/// Output per response, in bytes.
const CHUNK_LEN: usize = 16 << 10;
/// Responses that wait for the client to read; then the vmm's socket fills, and the vmm drops what does not fit.
const QUEUE_LEN: usize = 16;

/// How long a client may take to name the VM.
const FIRST_LIMIT: Duration = Duration::from_secs(30);

type Output = mpsc::Sender<Result<ConsoleResponse, Status>>;

/// Opens the console that the first request names.
pub(super) async fn open(
    node: &SharedNode,
    audit: &Audit,
    principal: Identity,
    mut requests: Streaming<ConsoleRequest>,
    ending: Ending,
) -> Result<Responses<ConsoleResponse>, Status> {
    let first = within(FIRST_LIMIT, requests.message()).await?.unwrap_or_default();
    let name = vm_ref(&first.name)?;
    let may_type = principal.may_change();
    let size = window_size(first.window)?;
    let change = Change::new(&principal, "Console", &name);
    let console = match node.open_console(&principal, &name.tenant, &name.vm).await {
        Ok(_) if !may_type && !first.input.is_empty() => Err(ServiceError::RoleDenied),
        other => other,
    };
    let console = console.map_err(|error| status::of(&error));
    audit.record(&change, console.as_ref().map(drop));
    let console = console?;
    let (responses, stream) = mpsc::channel(QUEUE_LEN);
    match console {
        Console::Live(socket, window) => {
            let keyboard = Keyboard { typed: first.input, size, requests, window, may_type };
            tokio::spawn(join(socket, keyboard, responses, ending));
        }
        Console::Kept { output, state } => {
            tokio::spawn(async move {
                for chunk in output.chunks(CHUNK_LEN) {
                    if responses.send(Ok(ConsoleResponse { output: chunk.to_vec() })).await.is_err() {
                        return;
                    }
                }
                let _ = responses.send(Err(status::no_process(state))).await;
            });
        }
    }
    Ok(Box::pin(ReceiverStream::new(stream)))
}

/// Carries bytes both ways until the vmm, the client or the daemon ends. A client that has nothing more to type may go
/// on reading.
async fn join(socket: UnixStream, keyboard: Keyboard, responses: Output, mut ending: Ending) {
    let (output, input) = socket.into_split();
    let mut typing = tokio::spawn(keyboard.type_into(input));
    tokio::select! {
        Ok(refusal) = &mut typing => {
            let _ = responses.send(Err(refusal)).await;
        }
        () = show(output, &responses) => {}
        () = responses.closed() => {}
        () = ended(&mut ending) => {
            let _ = responses.send(Err(status::of(&ServiceError::Ending))).await;
        }
    }
    typing.abort();
}

async fn show(mut output: OwnedReadHalf, responses: &Output) {
    let mut chunk = vec![0; CHUNK_LEN];
    while let Ok(len @ 1..) = output.read(&mut chunk).await {
        let output = chunk.get(..len).unwrap_or_default().to_vec();
        if responses.send(Ok(ConsoleResponse { output })).await.is_err() {
            return;
        }
    }
}

/// What the client types, and how large its window is.
struct Keyboard {
    /// Of its first request.
    typed: Vec<u8>,
    size: Option<WindowSize>,
    /// The further ones.
    requests: Streaming<ConsoleRequest>,
    window: Window,
    /// A viewer reads only.
    may_type: bool,
}

impl Keyboard {
    /// Carries input to the guest; returns only when there is some that may not be.
    async fn type_into(self, mut socket: OwnedWriteHalf) -> Status {
        let Self { mut typed, mut size, mut requests, window, may_type } = self;
        loop {
            if !typed.is_empty() && !may_type {
                return status::of(&ServiceError::RoleDenied);
            }
            if let Some(size) = size.filter(|_| may_type) {
                window.resize(size).await;
            }
            if socket.write_all(&typed).await.is_err() {
                break;
            }
            let Ok(Some(request)) = requests.message().await else { break };
            typed = request.input;
            size = match window_size(request.window) {
                Ok(size) => size,
                Err(refusal) => return refusal,
            };
        }
        // The socket's write half stays open until the console ends: a vmm may take its end for the client's.
        std::future::pending().await
    }
}

fn window_size(size: Option<v1::WindowSize>) -> Result<Option<WindowSize>, Status> {
    let Some(v1::WindowSize { columns, rows }) = size else { return Ok(None) };
    let len = |field: &'static str, len: u32| match u16::try_from(len) {
        Ok(len @ 1..) => Ok(len),
        _ => Err(status::bad_field(&SpecError::new(field, format!("{len}: a window has 1 to {}", u16::MAX)))),
    };
    Ok(Some(WindowSize { columns: len("window.columns", columns)?, rows: len("window.rows", rows)? }))
}
