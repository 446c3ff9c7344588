//! The console stream: between a client and the vmm's socket. Key function: [`open`].

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::audit::{Audit, Change};
use super::vm::{Responses, vm_ref};
use super::{Ending, ended, status};
use crate::api::v1::{ConsoleRequest, ConsoleResponse};
use crate::daemon::service::{Console, Principal, ServiceError, SharedNode};

/// Output per response, in bytes.
const CHUNK_LEN: usize = 16 << 10;
/// Responses that wait for the client to read; then the vmm's socket fills, and the vmm drops what does not fit.
const QUEUE_LEN: usize = 16;

type Output = mpsc::Sender<Result<ConsoleResponse, Status>>;

/// Opens the console that the first request names.
pub(super) async fn open(
    node: &SharedNode,
    audit: &Audit,
    principal: Principal,
    mut requests: Streaming<ConsoleRequest>,
    ending: Ending,
) -> Result<Responses<ConsoleResponse>, Status> {
    let first = requests.message().await?.unwrap_or_default();
    let name = vm_ref(&first.name)?;
    // Whoever reads a console may type into it too.
    let change = Change::new(&principal, "Console", &name);
    let console = node.open_console(&principal, &name.tenant, &name.vm).await.map_err(|error| status::of(&error));
    audit.record(&change, console.as_ref().map(drop));
    let console = console?;
    let (responses, stream) = mpsc::channel(QUEUE_LEN);
    match console {
        Console::Live(socket) => {
            tokio::spawn(join(socket, first.input, requests, responses, ending));
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
async fn join(
    socket: UnixStream,
    first_input: Vec<u8>,
    requests: Streaming<ConsoleRequest>,
    responses: Output,
    mut ending: Ending,
) {
    let (output, input) = socket.into_split();
    let typing = tokio::spawn(type_in(input, first_input, requests));
    tokio::select! {
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

async fn type_in(mut socket: OwnedWriteHalf, first: Vec<u8>, mut requests: Streaming<ConsoleRequest>) {
    let mut input = first;
    loop {
        if socket.write_all(&input).await.is_err() {
            return;
        }
        match requests.message().await {
            Ok(Some(request)) => input = request.input,
            Ok(None) | Err(_) => break,
        }
    }
    // The socket's write half stays open until the console ends: a vmm may take its end for the client's.
    std::future::pending::<()>().await;
    drop(socket);
}
