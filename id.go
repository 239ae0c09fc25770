package stromboli

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"strings"
	"time"
)

// idEncoding is base32 in lower case without padding, in the order of the
// alphabet, so that ids sort by the time of their making.
func idEncoding() *base32.Encoding {
	return base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)
}

const (
	runPrefix = "run-"
	jobPrefix = "job-"
	idLength  = 26
)

// NewRunID returns a new run id, "run-" and 26 characters: 48 bits of
// milliseconds since 1970 followed by 80 random bits. Ids sort by time.
func NewRunID(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	_, _ = rand.Read(b[6:]) // crypto/rand.Read never fails
	return runPrefix + idEncoding().EncodeToString(b[:])
}

// NewSandboxID returns a new sandbox id of 16 characters. It is short because
// it is part of unix socket paths, which the kernel limits to 107 bytes.
func NewSandboxID() string {
	var b [10]byte
	_, _ = rand.Read(b[:])
	return idEncoding().EncodeToString(b[:])
}

// NewToken returns 32 characters that nobody can guess.
func NewToken() string {
	var b [20]byte
	_, _ = rand.Read(b[:])
	return idEncoding().EncodeToString(b[:])
}

// ParseRunID takes "run-X" or "job-X", two names of the same run, and returns
// "run-X". It reports false for anything that can't be the name of a run.
func ParseRunID(s string) (string, bool) {
	x, ok := strings.CutPrefix(s, runPrefix)
	if !ok {
		if x, ok = strings.CutPrefix(s, jobPrefix); !ok {
			return "", false
		}
	}
	if len(x) != idLength {
		return "", false
	}
	// The decoder passes over line breaks and takes a byte for padding: only
	// what it would write itself is a name.
	b, err := idEncoding().DecodeString(x)
	if err != nil || idEncoding().EncodeToString(b) != x {
		return "", false
	}
	return runPrefix + x, true
}

// JobID returns the run's name as a job: "job-X" for "run-X".
func JobID(runID string) string { return jobPrefix + strings.TrimPrefix(runID, runPrefix) }
