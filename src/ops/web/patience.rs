//! A connection whose client does not read what it is sent, or reads it too slowly, is given up, so that it holds neither a
//! place nor memory for ever.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A stream whose writes fail when nothing could be written for some time, or not all that was there to be written.
pub(super) struct Patient<S> {
    stream: S,
    patience: Duration,
    in_all: Duration,
    /// Until when the write that waits now may wait.
    until: Option<Pin<Box<Sleep>>>,
    /// Until when everything has to be written. Once it is, the server flushes; an event or the like begins anew.
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// `patience` for each write, `in_all` for all that is there to be written.
    pub(super) fn new(stream: S, patience: Duration, in_all: Duration) -> Self {
        Self {
            stream,
            patience,
            in_all,
            until: None,
            end: None,
        }
    }

    /// What a write came to; an error when it has waited for too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            if self.end.is_none() {
                return written;
            }
        }
        let over = |limit: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>, length| {
            let limit = limit.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + length)));
            limit.as_mut().poll(cx).is_ready()
        };
        if over(&mut self.end, cx, self.in_all)
            || (written.is_pending() && over(&mut self.until, cx, self.patience))
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read, or reads too slowly",
            )));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = flushed {
            self.end = None;
        }
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up() {
        let (here, _there) = tokio::io::duplex(16);
        let mut patient = Patient::new(here, Duration::from_millis(20), Duration::from_secs(3600));
        patient.write_all(&[0; 16]).await.unwrap();
        let error = patient.write_all(&[0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_reads_a_little_now_and_then_is_given_up_too() {
        let (here, mut there) = tokio::io::duplex(16);
        let (a_while, in_all) = (Duration::from_secs(6), Duration::from_secs(8));
        let mut patient = Patient::new(here, a_while, in_all);
        let reading = tokio::spawn(async move {
            let mut read = 0;
            while there.read_u8().await.is_ok() {
                read += 1;
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            read
        });
        // What is read in time takes as long as it may, again and again.
        for _ in 0..4 {
            patient.write_all(&[0; 60]).await.unwrap();
            patient.flush().await.unwrap();
        }
        let began = Instant::now();
        let error = patient.write_all(&[0; 1500]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= in_all);
        drop(patient);
        assert!(reading.await.unwrap() > 180);
    }
}
