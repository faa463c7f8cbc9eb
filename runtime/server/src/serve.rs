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
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};
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
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let accepted = match select(pin!(listener.accept()), pin!(stopped(&mut stop))).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(_) => break,
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
    let stream = Patient::new(stream, settings.write_timeout);
    match tls {
        None => talk.over(stream).await,
        Some(tls) => {
            let greeted = timeout(settings.head_timeout, tls.accept(stream)).await;
            if let Ok(Ok(stream)) = greeted {
                talk.over(stream).await;
            } else if settings.verbose {
                crate::log(&format!("{} no TLS", talk.client.0));
            }
        }
    }
}

impl Talk {
    /// HTTP, until the client has had enough, is too slow, or the server ends.
    async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut self, stream: S) {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.settings.head_timeout)
            .max_buf_size(HEAD)
            .max_headers(HEADERS);
        let service = TowerToHyperService::new(Extension(self.client).layer(self.router));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let stop = matches!(
            select(connection.as_mut(), pin!(stopped(&mut self.stop))).await,
            Either::Right(_)
        );
        if stop {
            connection.as_mut().graceful_shutdown();
            // What goes wrong on a connection is the client's to notice.
            drop(connection.await);
        }
    }
}

/// A connection whose other end must read what is sent to it.
#[derive(Debug)]
struct Patient {
    stream: TcpStream,
    most: Duration,
    /// While something waits to be sent: until when.
    until: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, most: Duration) -> Patient {
        Patient {
            stream,
            most,
            until: None,
        }
    }

    /// A step of sending: an error where none was done for too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match step(Pin::new(&mut self.stream), context) {
            Poll::Ready(done) => {
                self.until = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let end = Instant::now() + self.most;
                let until = self
                    .until
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
                ready!(until.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |stream, context| stream.poll_shutdown(context))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |stream, context| {
            stream.poll_write_vectored(context, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
