//! Connections: how many there are, how slow they may be, TLS, and how the server ends.

use crate::app::App;
use crate::http::{self, Client};
use axum::{Extension, Router};
use futures_util::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{self, AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower_layer::Layer as _;

/// Most bytes of a request's head.
pub(crate) const HEAD: usize = 64 << 10;

/// Most headers of a request.
const HEADERS: usize = 100;

/// How often it is looked whether a client is still there, behind whose request more bytes lie.
const GONE: Duration = Duration::from_millis(500);

/// How long connections have after the last answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// Has it stopped: `true` is sent once.
pub type Stop = watch::Receiver<bool>;

/// Answers whoever connects, until `stop` says that it is enough; then running answers have `grace` to end. Returns when
/// nobody is answered any more.
///
/// Connections that come meanwhile, and more of them than there may be, wait in the system's queue.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    app: Arc<App>,
    mut stop: Stop,
    grace: Duration,
) {
    let tls = tls.map(TlsAcceptor::from);
    let most = app.settings.connections.clamp(1, Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(most));
    let router = http::router(Arc::clone(&app));
    loop {
        // The word to stop is looked for first: also while all places are taken, and where somebody waits without end.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = match select(pin!(stopped(&mut stop)), pin!(next)).await {
            Either::Left(_) => break,
            Either::Right((next, _)) => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let talk = Talk {
                    app: Arc::clone(&app),
                    router: router.clone(),
                    client: Client(peer.ip()),
                    stop: stop.clone(),
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    connection(stream, tls, talk).await;
                    drop(place);
                });
            }
            // The process is out of files, or the client went away: others may fare better in a while.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    app.ending.store(true, Ordering::Relaxed);
    let worker = Arc::clone(&app.worker);
    drop(tokio::task::spawn_blocking(move || worker.end(grace)).await);
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    drop(timeout(FAREWELL, places.acquire_many(all)).await);
}

/// Waits for the word to stop; nobody can say it any more where its sender is gone.
async fn stopped(stop: &mut Stop) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a connection needs.
struct Talk {
    app: Arc<App>,
    router: Router,
    client: Client,
    stop: Stop,
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, talk: Talk) {
    let settings = &talk.app.settings;
    // A token is a small packet, and is not to wait for the next.
    drop(stream.set_nodelay(true));
    let socket = Arc::new(stream);
    let stream = Patient::new(Arc::clone(&socket), settings.write_timeout);
    match tls {
        None => talk.over(stream, &socket).await,
        Some(tls) => {
            let greeted = timeout(settings.head_timeout, tls.accept(stream)).await;
            if let Ok(Ok(stream)) = greeted {
                talk.over(stream, &socket).await;
            } else if settings.verbose {
                crate::log(&format!("{} no TLS", talk.client.0));
            }
        }
    }
}

/// Waits until the client has closed its end, whether somebody reads from it or not: where bytes lie behind a request that is
/// answered, nobody does.
async fn closed(socket: &TcpStream) {
    loop {
        sleep(GONE).await;
        match socket.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _closed_or_broken => return,
        }
    }
}

impl Talk {
    /// HTTP, until the client has had enough, is too slow, or the server ends.
    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        mut self,
        stream: S,
        socket: &TcpStream,
    ) {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.settings.head_timeout)
            .max_buf_size(HEAD)
            .max_headers(HEADERS);
        let service = TowerToHyperService::new(Extension(self.client).layer(self.router));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut gone = pin!(closed(socket));
        let ended = pin!(stopped(&mut self.stop));
        let stop = match select(select(connection.as_mut(), gone.as_mut()), ended).await {
            Either::Left(_) => false,
            Either::Right(_) => true,
        };
        if stop {
            connection.as_mut().graceful_shutdown();
            // What goes wrong on a connection is the client's to notice.
            drop(select(connection, gone).await);
        }
    }
}

/// A connection whose other end must read what is sent to it.
#[derive(Debug)]
struct Patient {
    stream: Arc<TcpStream>,
    most: Duration,
    /// While something waits to be sent: until when.
    until: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: Arc<TcpStream>, most: Duration) -> Patient {
        Patient {
            stream,
            most,
            until: None,
        }
    }

    /// A step of sending: an error where none was done for too long.
    fn send(
        &mut self,
        context: &mut Context<'_>,
        step: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while self.stream.poll_write_ready(context)?.is_ready() {
            match step(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.until = None;
                    return Poll::Ready(done);
                }
            }
        }
        let end = Instant::now() + self.most;
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|count| buffer.advance(count))),
            }
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.send(context, |stream| stream.try_write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection is closed where both of its ends here are dropped, which is next.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.send(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
