package shim

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFrames(t *testing.T) {
	var wire bytes.Buffer
	wire.Write(putFrame(frameData, putUint(7), []byte("bytes")))
	wire.Write(putFrame(frameHello))
	for _, want := range []struct {
		t       frameType
		payload []byte
	}{{frameData, append(putUint(7), "bytes"...)}, {frameHello, []byte{}}} {
		got, payload, err := readFrame(&wire, maxFrame)
		if err != nil || got != want.t || !bytes.Equal(payload, want.payload) {
			t.Errorf("read %d %q, %v; want %d %q", got, payload, err, want.t, want.payload)
		}
	}
	if _, _, err := readFrame(&wire, maxFrame); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
	for name, raw := range map[string][]byte{
		"no type":       {0, 0, 0, 0, 0},
		"above limit":   {0, 1, 0, 1, 1},
		"huge":          {255, 255, 255, 255, 1},
		"cut header":    {0, 0, 0},
		"cut payload":   {0, 0, 0, 9, 1, 2},
		"cut at header": {0, 0, 0, 9, 1},
	} {
		if _, _, err := readFrame(bytes.NewReader(raw), 1<<16); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(putFrame(frameHello, []byte(`{"sandbox":"x"}`)))
	f.Add(putFrame(frameLines, putUint(1), numbered(1, "a", "b")))
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		for {
			typ, payload, err := readFrame(r, 1<<12)
			if err != nil {
				return
			}
			if len(payload) >= 1<<12 {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			if again := putFrame(typ, payload); !bytes.Contains(raw, again) {
				t.Fatal("a frame doesn't survive the way back")
			}
		}
	})
}

// numbered makes records from the given sequence on.
func numbered(seq int64, lines ...string) []byte {
	var b []byte
	for _, l := range lines {
		at := len(b)
		b = appendRecord(b, time.Unix(1, 2), Stdout, []byte(l), 0)
		setSeq(b[at:], seq)
		seq++
	}
	return b
}

func TestDecodeRecords(t *testing.T) {
	b := appendRecord(nil, time.Unix(3, 4), Stderr, []byte("a\xff"), 5)
	setSeq(b, 9)
	got, err := decodeRecords(b)
	want := []Line{{Seq: 9, At: time.Unix(3, 4).UTC(), Stream: Stderr, Data: []byte("a\xff"), Dropped: 5}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	bad := map[string][]byte{
		"cut header": b[:recordHeader-1], "cut data": b[:len(b)-1],
		"sequence falls": append(numbered(2, "x"), numbered(2, "y")...), "sequence 0": numbered(0, "x"),
	}
	stream := numbered(1, "x")
	stream[4] = 9
	bad["unknown stream"] = stream
	dropped := numbered(1, "x")
	dropped[24] = 0xff
	bad["negative dropped"] = dropped
	for name, raw := range bad {
		if _, err := decodeRecords(raw); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add(numbered(1, "a", "", "b\nc"))
	f.Add(numbered(1, "a")[:recordHeader])
	f.Fuzz(func(t *testing.T, raw []byte) {
		lines, err := decodeRecords(raw)
		if err != nil {
			return
		}
		var again []byte
		for _, l := range lines {
			at := len(again)
			again = appendRecord(again, l.At, l.Stream, l.Data, l.Dropped)
			setSeq(again[at:], l.Seq)
			copy(again[at+5:at+8], raw[at+5:at+8]) // padding
		}
		if !bytes.Equal(raw, again) {
			t.Error("records don't survive the way back")
		}
	})
}
