package shim

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// A frame is a big-endian length of four bytes, which counts the type and the
// payload, a type of one byte, and the payload.
type frameType uint8

const (
	frameHello    frameType = 1  // shim → server: JSON hello
	frameWelcome  frameType = 2  // server → shim: JSON welcome
	frameRefuse   frameType = 3  // server → shim: JSON RemoteError, then the end
	frameRequest  frameType = 4  // server → shim: JSON request
	frameResponse frameType = 5  // shim → server: JSON response
	frameStdin    frameType = 6  // server → shim: call id, stdin id, bytes; answered by a response
	frameRead     frameType = 7  // server → shim: generation, after: send the lines above after
	frameCredit   frameType = 8  // server → shim: how many bytes of lines may have been sent in all
	frameLines    frameType = 9  // shim → server: generation, records
	frameAck      frameType = 10 // server → shim: lines up to this are durable
	frameData     frameType = 11 // both ways: call id, bytes of a file
	frameMore     frameType = 12 // both ways: call id: the last bytes were taken
	frameEnd      frameType = 13 // server → shim: call id: no more bytes
	frameCancel   frameType = 14 // server → shim: call id: nobody waits for it any more
	frameBeat     frameType = 15 // server → shim, since version 2: the server is there
)

const (
	frameHeader = 5
	maxFrame    = 9 << 20  // of either side, once the hello was accepted
	maxHello    = 64 << 10 // of a stranger
	fileChunk   = 256 << 10
)

// putFrame makes a frame of the parts of its payload.
func putFrame(t frameType, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, frameHeader, frameHeader+n)
	putHeader(b, t, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// putHeader writes the header of a frame with n bytes of payload into b.
func putHeader(b []byte, t frameType, n int) {
	binary.BigEndian.PutUint32(b, uint32(n+1)) //nolint:gosec // bounded by maxFrame
	b[4] = byte(t)
}

// putJSON makes a frame of a value that can't fail to be JSON.
func putJSON(t frameType, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte("null") // the other side refuses it as malformed
	}
	return putFrame(t, b)
}

// readFrame reads one frame of at most limit bytes. The payload is the
// caller's.
func readFrame(r io.Reader, limit int) (frameType, []byte, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n == 0 || int64(n) > int64(limit) {
		return 0, nil, fmt.Errorf("frame of %d bytes, limit is %d", n, limit)
	}
	payload := make([]byte, n-1)
	if _, err := io.ReadFull(r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return frameType(h[4]), payload, nil
}

// cutUint takes a big-endian integer off the front of b.
func cutUint(b []byte) (v uint64, rest []byte, ok bool) {
	if len(b) < 8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(b), b[8:], true
}

func putUint(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
