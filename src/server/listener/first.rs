//! Notices the headers of a connection's first request in the bytes that come: a HEADERS frame of HTTP/2, or the empty
//! line of HTTP/1.

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame's header: length (3 bytes), type, flags, stream (4 bytes).
const FRAME_HEADER: usize = 9;
/// The type of a HEADERS frame.
const HEADERS: u8 = 1;

/// Bytes seen so far, as far as they matter.
#[derive(Debug, Default)]
pub struct First {
    state: State,
}

#[derive(Debug)]
enum State {
    /// So many bytes of the preface have come, and nothing else.
    Preface(usize),
    /// HTTP/2: bytes left of the frame under way, and the next frame's header as far as it has come.
    Frames {
        skip: usize,
        header: [u8; FRAME_HEADER],
        have: usize,
    },
    /// HTTP/1: the last bytes, to find the empty line.
    Lines([u8; 4]),
}

impl Default for State {
    fn default() -> Self {
        State::Preface(0)
    }
}

impl First {
    /// Whether the headers of a request have come with these bytes.
    pub fn saw(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|&byte| self.state.take(byte))
    }
}

impl State {
    fn take(&mut self, byte: u8) -> bool {
        match self {
            State::Preface(have) if PREFACE.get(*have) == Some(&byte) => {
                *have += 1;
                if *have == PREFACE.len() {
                    *self = State::Frames {
                        skip: 0,
                        header: [0; FRAME_HEADER],
                        have: 0,
                    };
                }
                false
            }
            State::Preface(have) => {
                let mut last = [0; 4];
                for &seen in &PREFACE[..*have] {
                    last.rotate_left(1);
                    last[3] = seen;
                }
                *self = State::Lines(last);
                self.take(byte)
            }
            State::Lines(last) => {
                last.rotate_left(1);
                last[3] = byte;
                last == b"\r\n\r\n" || last.ends_with(b"\n\n")
            }
            State::Frames { skip, .. } if *skip > 0 => {
                *skip -= 1;
                false
            }
            State::Frames { skip, header, have } => {
                header[*have] = byte;
                *have += 1;
                if *have < FRAME_HEADER {
                    return false;
                }
                *have = 0;
                let [a, b, c, kind, ..] = *header;
                *skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                kind == HEADERS
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + length, 0xff);
        frame
    }

    /// The number of bytes after which the headers were seen.
    fn seen(bytes: &[u8]) -> Option<usize> {
        let mut first = First::default();
        bytes.iter().position(|&byte| first.saw(&[byte]))
    }

    #[test]
    fn first_sees_the_headers_frame_behind_settings() {
        let settings = [PREFACE.to_vec(), frame(4, 300), frame(8, 4)].concat();
        assert_eq!(seen(&settings), None);
        let whole = [settings.clone(), frame(HEADERS, 40)].concat();
        assert_eq!(seen(&whole), Some(settings.len() + FRAME_HEADER - 1));
        assert!(First::default().saw(&whole));
    }

    #[test]
    fn first_sees_the_empty_line_of_http_1() {
        let request = b"PRIVET / HTTP/1.1\r\nhost: here\r\n\r\nbody";
        assert_eq!(seen(request), Some(request.len() - 5));
        assert_eq!(seen(b"GET / HTTP/1.1\r\nhost: here\r\n"), None);
        assert_eq!(seen(b"\n\n"), Some(1));
    }

    #[test]
    fn first_sees_nothing_in_silence_or_noise() {
        assert_eq!(seen(&PREFACE[..10]), None);
        assert_eq!(seen(&[0xff; 4096]), None);
    }
}
