package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Stream says where a line came from.
type Stream uint8

// The streams.
const (
	Stdout      Stream = 1 // a line of the agent's stdout
	Stderr      Stream = 2 // a line of the agent's stderr
	StdinRecord Stream = 3 // Data is the JSON of a StdinWritten
	Exit        Stream = 4 // Data is the JSON of an ExitStatus; the last line there is

	// Hooks come before the agent, one after the other.
	HookStart  Stream = 5 // Data is the JSON of a HookStarted
	HookStdout Stream = 6
	HookStderr Stream = 7
	HookExit   Stream = 8 // Data is the JSON of a HookStatus
)

// String names the stream.
func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	case StdinRecord:
		return "stdin"
	case Exit:
		return "exit"
	case HookStart:
		return "hook's start"
	case HookStdout:
		return "hook's stdout"
	case HookStderr:
		return "hook's stderr"
	case HookExit:
		return "hook's exit"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

// Line is one line of the spool. Seq counts 1, 2, 3, … per sandbox without
// gaps.
type Line struct {
	Seq    int64
	At     time.Time // when the shim read it
	Stream Stream
	// Data are the line's bytes as the agent wrote them, valid UTF-8 or not,
	// without the newline.
	Data []byte
	// Dropped counts the bytes that were cut from the end of an overlong line.
	Dropped int64
}

// StdinWritten is the data of a StdinRecord: the frame with this id has been
// written whole.
type StdinWritten struct {
	ID    uint64 `json:"id"`
	Bytes int    `json:"bytes"`
}

// ExitStatus is the data of an Exit line.
type ExitStatus struct {
	// ExitCode is the agent's own, or 128 + signal.
	ExitCode int `json:"exit_code"`
	// Signal is the name, such as "SIGKILL", of the signal that ended the
	// agent; empty if none did.
	Signal string `json:"signal,omitempty"`
	// OOM says that the kernel killed the agent for its memory.
	OOM bool `json:"oom,omitempty"`
	// Cause says why the agent was made to end: CauseDeadline, CauseOrphaned,
	// the cause of a StopRequest, or empty when it ended by itself. It is set as
	// soon as a stop is under way, also if the agent then ends by itself.
	Cause string `json:"cause,omitempty"`
}

// Causes that the shim itself gives to an agent's end.
const (
	CauseDeadline = "deadline"
	CauseOrphaned = "orphaned"
	// CauseNotStarted: a hook's shell could not be started.
	CauseNotStarted = "not_started"
)

// ParseExit reads the data of an Exit line.
func ParseExit(data []byte) (ExitStatus, error) {
	var s ExitStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("parse exit line: %w", err)
	}
	return s, nil
}

// A record is a line in the spool and on the wire alike: a header of four
// big-endian integers (length and stream, sequence, nanoseconds, dropped bytes)
// and the data.
const recordHeader = 32

var errRecord = errors.New("malformed record")

// appendRecord adds a record with sequence 0 to b; the spool numbers it.
func appendRecord(b []byte, at time.Time, stream Stream, data []byte, dropped int64) []byte {
	var h [recordHeader]byte
	binary.BigEndian.PutUint32(h[0:], uint32(len(data))) //nolint:gosec // bounded by maxLine
	h[4] = byte(stream)
	binary.BigEndian.PutUint64(h[16:], uint64(at.UnixNano()))
	binary.BigEndian.PutUint64(h[24:], uint64(dropped)) //nolint:gosec // a count
	b = append(b, h[:]...)
	return append(b, data...)
}

func recordSize(b []byte) int64  { return recordHeader + int64(binary.BigEndian.Uint32(b)) }
func recordSeq(b []byte) int64   { return int64(binary.BigEndian.Uint64(b[8:])) }   //nolint:gosec // our own
func setSeq(b []byte, seq int64) { binary.BigEndian.PutUint64(b[8:], uint64(seq)) } //nolint:gosec // our own
func wholeRecords(b []byte) (n int, last int64) {
	for len(b)-n >= recordHeader {
		size := recordSize(b[n:])
		if int64(len(b)-n) < size {
			break
		}
		last = recordSeq(b[n:])
		n += int(size)
	}
	return n, last
}

// decodeRecords returns the records in b, which the lines go on to share.
// Sequences must rise.
func decodeRecords(b []byte) ([]Line, error) {
	var lines []Line
	prev := int64(0)
	for len(b) > 0 {
		if len(b) < recordHeader || int64(len(b)) < recordSize(b) {
			return nil, errRecord
		}
		size := recordSize(b)
		l := Line{
			Seq:     recordSeq(b),
			At:      time.Unix(0, int64(binary.BigEndian.Uint64(b[16:]))).UTC(), //nolint:gosec // any value is a time
			Stream:  Stream(b[4]),
			Data:    b[recordHeader:size:size],
			Dropped: int64(binary.BigEndian.Uint64(b[24:])), //nolint:gosec // checked below
		}
		if l.Seq <= prev || l.Dropped < 0 || l.Stream < Stdout || l.Stream > HookExit || size > recordHeader+maxLine {
			return nil, errRecord
		}
		prev = l.Seq
		lines = append(lines, l)
		b = b[size:]
	}
	return lines, nil
}
