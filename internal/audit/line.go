package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/tomblancdev/stromboli"
)

// A line is the record as JSON whose last field is "hash": the SHA-256 of the
// line's bytes as they would be without that field. So whoever has `jq` and
// `sha256sum` can check it.
const (
	hashField = `,"hash":"`
	hashEnd   = `"}`
	hashLen   = 2 * sha256.Size
	tailLen   = len(hashField) + hashLen + len(hashEnd)

	// maxLine bounds a line; a record takes less, whatever is in it: texts are
	// clipped to maxText bytes, and there are at most maxDetail details.
	maxLine   = 8 << 10
	maxText   = 256
	maxDetail = 4
)

var errLine = errors.New("not a record")

// stored is a record but for its hash.
type stored struct {
	stromboli.AuditRecord
	Hash *string `json:"hash,omitempty"` // hides the record's own
}

// encode makes the line of a record, with its end, and the record's hash.
func encode(r stromboli.AuditRecord) (line []byte, hash string, err error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(stored{AuditRecord: r}); err != nil {
		return nil, "", err
	}
	body := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	hash = hashOf(body)
	line = append(body[:len(body)-1], hashField+hash+hashEnd+"\n"...)
	return line, hash, nil
}

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// decode takes a line without its end. The record is whole: its hash is right.
func decode(line []byte) (stromboli.AuditRecord, error) {
	var r stromboli.AuditRecord
	if len(line) < tailLen || len(line) > maxLine {
		return r, errLine
	}
	body, tail := line[:len(line)-tailLen], line[len(line)-tailLen:]
	hash, ok := bytes.CutPrefix(tail, []byte(hashField))
	if !ok || !bytes.HasSuffix(hash, []byte(hashEnd)) {
		return r, errLine
	}
	sum := sha256.New()
	sum.Write(body)
	sum.Write([]byte("}"))
	if got := hex.EncodeToString(sum.Sum(nil)); got != string(hash[:hashLen]) {
		return r, errors.New("its hash is another's")
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, errLine
	}
	if r.Seq == 0 {
		return r, errLine
	}
	return r, nil
}

// bounded clips every text of a record that may be a caller's.
func bounded(r stromboli.AuditRecord) stromboli.AuditRecord {
	for _, s := range []*string{&r.Action, &r.Tenant, &r.Principal, &r.Client, &r.From, &r.RequestID, &r.Object, &r.Outcome, (*string)(&r.Code), (*string)(&r.Stage)} {
		*s = clip(*s)
	}
	if len(r.Detail) > 0 {
		detail := make(map[string]string, maxDetail)
		for k, v := range r.Detail {
			if len(detail) < maxDetail {
				detail[clip(k)] = clip(v)
			}
		}
		r.Detail = detail
	}
	r.At = r.At.UTC().Truncate(time.Microsecond)
	return r
}

// clip bounds a text and leaves out what JSON would write at length.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || c == '\u2028' || c == '\u2029' {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
}
