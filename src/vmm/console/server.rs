//! Connections to the console: each first gets the past, then what comes; what it sends is typed into the guest.
//!
//! Key type: [`Server`], owned by the control thread, which forwards epoll events to it by [`Token`]. A slow reader is
//! never waited for: it is told how many bytes it missed. Guests print byte by byte; what comes within [`PACE`] goes out
//! together.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::ring::{Readers, Ring};

/// Most connections at once; a further one is closed at once.
const MAX_CONNECTIONS: usize = 16;
/// Most input that waits for the guest, in bytes; a sender waits beyond that.
const MAX_INPUT: usize = 4096;
/// Most output that is copied at once, in bytes.
const CHUNK_LEN: usize = 16 << 10;
/// Least time between two looks at what the guest prints: a hundred bytes or more of a serial line, and nothing to who waits
/// for a boot. The first byte after a rest goes at once.
const PACE: Duration = Duration::from_millis(2);

/// Which of the server's descriptors an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Somebody connects.
    Listener,
    /// The guest wrote something.
    Output,
    /// This connection is ready.
    Connection(u32),
}

struct Connection {
    stream: UnixStream,
    /// Next byte of the console to send.
    position: u64,
    /// Sent before `position`: a notice about bytes that were missed, or a chunk that was cut short.
    unsent: VecDeque<u8>,
    /// Waiting for room in the socket.
    is_blocked: bool,
    /// Not read because the guest does not take its input.
    is_paused: bool,
}

/// The console's server.
pub struct Server {
    listener: UnixListener,
    ring: Arc<Ring>,
    readers: Arc<Readers>,
    connections: BTreeMap<u32, Connection>,
    next_id: u32,
    input: VecDeque<u8>,
    /// Until when output is left to gather.
    rests_until: Instant,
    /// The guest printed during the rest.
    has_output: bool,
    token_data: fn(Token) -> u64,
}

impl Server {
    /// Registers with `epoll`; `token_data` turns a token into the event's data.
    pub fn new(
        listener: UnixListener,
        ring: Arc<Ring>,
        readers: Arc<Readers>,
        epoll: &Epoll,
        token_data: fn(Token) -> u64,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let add =
            |fd: RawFd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token_data(token)));
        add(listener.as_raw_fd(), Token::Listener)?;
        add(readers.event().as_raw_fd(), Token::Output)?;
        Ok(Self {
            listener,
            ring,
            readers,
            connections: BTreeMap::new(),
            next_id: 0,
            input: VecDeque::new(),
            rests_until: Instant::now(),
            has_output: false,
            token_data,
        })
    }

    /// Handles one event.
    pub fn handle(&mut self, token: Token, events: EventSet, epoll: &Epoll) {
        match token {
            Token::Listener => self.accept(epoll),
            Token::Output => {
                let _ = self.readers.event().read();
                self.has_output = true;
                self.go_on(epoll);
            }
            Token::Connection(id) => {
                if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR) {
                    self.receive(id, epoll);
                }
                if events.contains(EventSet::OUT)
                    && let Some(connection) = self.connections.get_mut(&id)
                {
                    connection.is_blocked = false;
                    self.watch(id, epoll);
                    self.send_all(epoll);
                }
            }
        }
    }

    /// How long until output is to be sent that has gathered, if there is any: then [`Server::go_on`] is to be called.
    pub fn time_left(&self) -> Option<Duration> {
        self.has_output.then(|| self.rests_until.saturating_duration_since(Instant::now()))
    }

    /// Sends what has gathered, if it is time.
    pub fn go_on(&mut self, epoll: &Epoll) {
        if self.time_left().is_some_and(|left| left.is_zero()) {
            self.has_output = false;
            self.send_all(epoll);
            self.rests_until = Instant::now() + PACE;
        }
    }

    /// Takes the input that waits, as far as `type_in` does; then lets paused senders go on.
    pub fn type_input(&mut self, mut type_in: impl FnMut(&[u8]) -> usize, epoll: &Epoll) {
        while !self.input.is_empty() {
            let typed = type_in(self.input.make_contiguous());
            if typed == 0 {
                break;
            }
            self.input.drain(..typed);
        }
        if self.input.len() < MAX_INPUT {
            let paused: Vec<u32> =
                self.connections.iter().filter(|(_, connection)| connection.is_paused).map(|(id, _)| *id).collect();
            for id in paused {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.is_paused = false;
                }
                self.watch(id, epoll);
            }
        }
    }

    /// Sends what the connections have not had yet, without waiting for any: the last thing before the process ends.
    pub fn flush(&mut self, epoll: &Epoll) {
        self.send_all(epoll);
    }

    fn accept(&mut self, epoll: &Epoll) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            let event =
                EpollEvent::new(EventSet::IN | EventSet::READ_HANG_UP, (self.token_data)(Token::Connection(id)));
            if epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event).is_err() {
                continue;
            }
            let position = self.ring.written().saturating_sub(crate::wire::console_ring::DATA_LEN as u64);
            let connection =
                Connection { stream, position, unsent: VecDeque::new(), is_blocked: false, is_paused: false };
            self.connections.insert(id, connection);
        }
        self.send_all(epoll);
    }

    fn receive(&mut self, id: u32, epoll: &Epoll) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let room = MAX_INPUT.saturating_sub(self.input.len());
        if room == 0 {
            connection.is_paused = true;
            self.watch(id, epoll);
            return;
        }
        let mut bytes = vec![0; room];
        match connection.stream.read(&mut bytes) {
            Ok(0) => self.close(id),
            Ok(count) => self.input.extend(bytes.iter().take(count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.close(id),
        }
    }

    /// Sends to every connection that takes it, then asks for a wake-up at the next output.
    fn send_all(&mut self, epoll: &Epoll) {
        loop {
            let ids: Vec<u32> = self.connections.keys().copied().collect();
            for id in ids {
                self.send(id, epoll);
            }
            if self.connections.is_empty() {
                return;
            }
            self.readers.wait();
            // Output between the last copy and the request for a wake-up would go unnoticed.
            let written = self.ring.written();
            if self.connections.values().all(|connection| connection.is_blocked || connection.position >= written) {
                return;
            }
        }
    }

    fn send(&mut self, id: u32, epoll: &Epoll) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        while !connection.is_blocked {
            if connection.unsent.is_empty() {
                let chunk = self.ring.read(connection.position, CHUNK_LEN);
                connection.position += chunk.skipped + chunk.bytes.len() as u64;
                if chunk.skipped > 0 {
                    connection.unsent.extend(
                        format!("\r\n[ostler: {} bytes of console output were skipped]\r\n", chunk.skipped).bytes(),
                    );
                }
                connection.unsent.extend(chunk.bytes);
                if connection.unsent.is_empty() {
                    return;
                }
            }
            match connection.stream.write(connection.unsent.make_contiguous()) {
                Ok(count) => drop(connection.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.is_blocked = true;
                    self.watch(id, epoll);
                    return;
                }
                Err(_) => {
                    self.close(id);
                    return;
                }
            }
        }
    }

    /// Tells epoll what this connection waits for.
    fn watch(&mut self, id: u32, epoll: &Epoll) {
        let Some(connection) = self.connections.get(&id) else { return };
        let mut events = EventSet::empty();
        events.set(EventSet::IN | EventSet::READ_HANG_UP, !connection.is_paused);
        events.set(EventSet::OUT, connection.is_blocked);
        let event = EpollEvent::new(events, (self.token_data)(Token::Connection(id)));
        if epoll.ctl(ControlOperation::Modify, connection.stream.as_raw_fd(), event).is_err() {
            self.close(id);
        }
    }

    /// Dropping the stream takes it out of epoll.
    fn close(&mut self, id: u32) {
        self.connections.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;
    use crate::wire::console_ring::FILE_LEN;

    const CONNECTION: u64 = 100;

    fn data(token: Token) -> u64 {
        match token {
            Token::Listener => 0,
            Token::Output => 1,
            Token::Connection(id) => CONNECTION + u64::from(id),
        }
    }

    fn token(data: u64) -> Token {
        match data {
            0 => Token::Listener,
            1 => Token::Output,
            id => Token::Connection((id - CONNECTION) as u32),
        }
    }

    struct Fixture {
        epoll: Epoll,
        server: Server,
        writer: Writer,
        path: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let file = tempfile::tempfile().unwrap();
            file.set_len(FILE_LEN as u64).unwrap();
            let ring = Arc::new(Ring::map(file).unwrap());
            let readers = Readers::new().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("console.sock");
            let epoll = Epoll::new().unwrap();
            let listener = UnixListener::bind(&path).unwrap();
            let server = Server::new(listener, Arc::clone(&ring), Arc::clone(&readers), &epoll, data).unwrap();
            Self { epoll, server, writer: Writer::new(ring, readers), path, _dir: dir }
        }

        /// Handles events until there are none, and none are to come.
        fn settle(&mut self) {
            let mut events = [EpollEvent::default(); 8];
            loop {
                let rest = self.server.time_left();
                let timeout = rest.map_or(0, |left| left.as_millis() as i32 + 1);
                let count = self.epoll.wait(timeout, &mut events).unwrap();
                if count == 0 && rest.is_none() {
                    return;
                }
                self.server.go_on(&self.epoll);
                for event in &events[..count] {
                    self.server.handle(token(event.data()), event.event_set(), &self.epoll);
                }
            }
        }
    }

    #[test]
    fn a_late_comer_gets_the_past_and_then_what_comes() {
        let mut fixture = Fixture::new();
        fixture.writer.write_all(b"past ").unwrap();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        fixture.settle();
        fixture.writer.write_all(b"present").unwrap();
        fixture.settle();
        let mut got = [0; 12];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"past present");
    }

    #[test]
    fn what_is_printed_within_a_moment_goes_out_together() {
        let mut fixture = Fixture::new();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        fixture.settle();
        // However slow this machine is.
        fixture.server.rests_until = Instant::now() + Duration::from_secs(3600);
        client.set_nonblocking(true).unwrap();
        let mut got = [0; 64];
        let mut woken = 0;
        for byte in b"byte by byte" {
            fixture.writer.write_all(&[*byte]).unwrap();
            woken += fixture.epoll.wait(0, &mut [EpollEvent::default()]).unwrap();
            fixture.server.handle(Token::Output, EventSet::IN, &fixture.epoll);
            assert_eq!(client.read(&mut got).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        assert_eq!(woken, 1);
        let now = Instant::now();
        fixture.server.rests_until = now;
        fixture.server.go_on(&fixture.epoll);
        assert_eq!(client.read(&mut got).unwrap(), b"byte by byte".len());
        assert_eq!(fixture.server.time_left(), None);
        assert!(fixture.server.rests_until >= now + PACE);
    }

    #[test]
    fn types_what_a_connection_sends_and_holds_back_more_than_the_guest_takes() {
        let mut fixture = Fixture::new();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        client.write_all(&[b'k'; MAX_INPUT + 10]).unwrap();
        fixture.settle();
        assert_eq!(fixture.server.input.len(), MAX_INPUT);
        let mut typed = 0;
        for _ in 0..100 {
            let mut room = 64;
            let type_in = |input: &[u8]| {
                let count = input.len().min(room);
                room -= count;
                typed += count;
                count
            };
            fixture.server.type_input(type_in, &fixture.epoll);
            fixture.settle();
        }
        assert_eq!(typed, MAX_INPUT + 10);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nothing_up_and_learns_what_it_missed() {
        let mut fixture = Fixture::new();
        let mut client = UnixStream::connect(&fixture.path).unwrap();
        fixture.settle();
        for _ in 0..200 {
            fixture.writer.write_all(&[b'z'; 8 << 10]).unwrap();
            fixture.settle();
        }
        client.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        loop {
            let mut bytes = [0; 64 << 10];
            match client.read(&mut bytes) {
                Ok(count) => got.extend_from_slice(&bytes[..count]),
                Err(_) => {
                    fixture.settle();
                    if let Ok(count) = client.read(&mut bytes) { got.extend_from_slice(&bytes[..count]) } else { break }
                }
            }
        }
        let text = String::from_utf8(got).unwrap();
        assert!(text.contains("bytes of console output were skipped"), "{} bytes", text.len());
    }

    #[test]
    fn one_connection_too_many_is_closed() {
        let mut fixture = Fixture::new();
        let clients: Vec<_> = (0..=MAX_CONNECTIONS)
            .map(|_| {
                let client = UnixStream::connect(&fixture.path).unwrap();
                fixture.settle();
                client
            })
            .collect();
        let mut last = &clients[MAX_CONNECTIONS];
        assert_eq!(last.read(&mut [0]).unwrap(), 0);
        assert_eq!(fixture.server.connections.len(), MAX_CONNECTIONS);
    }
}
