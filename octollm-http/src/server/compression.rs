//! Content coding with gzip: of answers on their way out, and of request bodies on their way in.

use std::{
    io::{self, Read, Write},
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame};
use octollm_core::error::{ErrorKind, Failure};
use tokio::task::yield_now;

use super::{body::HttpBody, routes::Answer};

/// The bytes from which an answer is compressed.
const LEAST: u64 = 1024;
/// Bytes that are coded in one go.
const PIECE: usize = 32 * 1024;
/// Pieces that are coded before other work has its turn.
const IN_A_ROW: usize = 8;
const GZIP: HeaderValue = HeaderValue::from_static("gzip");

/// Compresses an answer if it is large enough and the caller accepts that.
pub(crate) fn compressed(Answer(response): Answer, head: &HeaderMap) -> Answer {
    let length = http_body::Body::size_hint(response.body()).exact();
    if length.is_none_or(|length| length < LEAST) || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return Answer(response);
    }
    let is_accepted = accepts_gzip(head);
    let mut response = match is_accepted {
        true => response.map(|body| HttpBody::streamed(Gzip::of(body))),
        false => response,
    };
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_accepted {
        headers.insert(header::CONTENT_ENCODING, GZIP);
    }
    Answer(response)
}

/// Whether a caller accepts gzip, and does not prefer an answer without a coding.
fn accepts_gzip(head: &HeaderMap) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, 0.0);
    let fields = head.get_all(header::ACCEPT_ENCODING).iter().filter_map(|field| field.to_str().ok());
    for coding in fields.flat_map(|field| field.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
        match &*name {
            "gzip" | "x-gzip" => gzip = Some(weight),
            "*" => any = Some(weight),
            "identity" => identity = weight,
            _ => {}
        }
    }
    gzip.or(any).is_some_and(|weight| weight > 0.0 && weight >= identity)
}

/// A body that is compressed as it is sent, piece by piece.
struct Gzip {
    body: HttpBody,
    rest: Bytes,
    /// `None` once the end is written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn of(body: HttpBody) -> Self {
        Self { body, rest: Bytes::new(), encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl Body for Gzip {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        for _ in 0..IN_A_ROW {
            let Some(encoder) = &mut this.encoder else { return Poll::Ready(None) };
            if this.rest.is_empty() {
                match Pin::new(&mut this.body).poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(Some(Ok(frame))) => this.rest = frame.into_data().unwrap_or_default(),
                    Poll::Ready(None) => {
                        let last = this.encoder.take().map(GzEncoder::finish).transpose()?;
                        return Poll::Ready(last.map(|last| Ok(Frame::data(last.into()))));
                    }
                }
            }
            let piece = this.rest.split_to(this.rest.len().min(PIECE));
            encoder.write_all(&piece)?;
            let written = mem::take(encoder.get_mut());
            if !written.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(written.into()))));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Decompresses the body of a request.
///
/// # Errors
/// It is larger than `most` bytes, which is found out before it is decompressed further, or it is not gzip.
pub(crate) async fn decompressed(body: Bytes, most: usize) -> Result<Bytes, Failure> {
    let mut decoder = MultiGzDecoder::new(&*body);
    let mut decoded = Vec::new();
    let mut piece = vec![0; PIECE];
    for number in 1_usize.. {
        match decoder.read(&mut piece) {
            Ok(0) => break,
            Ok(bytes) if decoded.len() + bytes > most => {
                let words = format!("the decompressed body is larger than {most} bytes");
                return Err(Failure::new(ErrorKind::PayloadTooLarge, words));
            }
            Ok(bytes) => decoded.extend_from_slice(&piece[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "body cannot be decompressed");
                return Err(Failure::new(ErrorKind::BadRequest, "the body is not valid gzip"));
            }
        }
        if number % IN_A_ROW == 0 {
            yield_now().await;
        }
    }
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_coding_is_chosen_by_the_weights_of_the_caller() {
        let accepts = |values: &[&'static str]| {
            let mut head = HeaderMap::new();
            for value in values {
                head.append(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            accepts_gzip(&head)
        };
        for values in [
            &["gzip"][..],
            &["GZIP"],
            &["br, gzip;q=0.5"],
            &["br", "gzip"],
            &["*"],
            &["identity;q=0.5, gzip"],
            &["*;q=0, gzip"],
        ] {
            assert!(accepts(values), "{values:?}");
        }
        for values in [
            &[][..],
            &[""],
            &["br"],
            &["gzip;q=0"],
            &["gzip;q=0, *"],
            &["*;q=0"],
            &["identity, gzip;q=0.9"],
            &["gzip;q=x"],
        ] {
            assert!(!accepts(values), "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_compressed_is_read_back(length in 0_usize..300_000, step in 1_usize..300, cut in any::<prop::sample::Index>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let bytes: Bytes = (0..length).map(|index| (index / step % 251) as u8).collect::<Vec<_>>().into();
                let body = Gzip::of(HttpBody::full(bytes.clone()));
                let coded = body.collect().await.unwrap().to_bytes();
                prop_assert_eq!(&decompressed(coded.clone(), length).await.unwrap(), &bytes);
                if length > 0 {
                    let failure = decompressed(coded.clone(), length - 1).await.unwrap_err();
                    prop_assert_eq!(failure.kind, ErrorKind::PayloadTooLarge);
                }
                // Cut short, or with more behind it.
                let short = coded.slice(..cut.index(coded.len()).max(1));
                prop_assert!(decompressed(short, length).await.is_err());
                let more = [&coded[..], b"{}"].concat();
                prop_assert!(decompressed(more.into(), length).await.is_err());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn several_members_are_one_body() {
        let coded = [gzip(b"{\"a\":"), gzip(b"1}")].concat();
        assert_eq!(decompressed(coded.into(), 100).await.unwrap(), "{\"a\":1}");
    }
}
