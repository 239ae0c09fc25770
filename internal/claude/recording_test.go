package claude

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

// recording is what the real CLI printed once. Lines of the file begin with O
// (standard output), E (standard error) or X (the exit).
type recording struct {
	name  string
	lines []recordedLine
	exit  Exit
}

type recordedLine struct {
	stream string
	data   []byte
}

// record reads testdata/<name>.rec.
func record(t *testing.T, name string) recording {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".rec"))
	if err != nil {
		t.Fatal(err)
	}
	r := recording{name: name}
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		kind, rest, _ := strings.Cut(s.Text(), " ")
		switch kind {
		case "O":
			r.lines = append(r.lines, recordedLine{Stdout, []byte(rest)})
		case "E":
			r.lines = append(r.lines, recordedLine{Stderr, []byte(rest)})
		case "X":
			var x struct{ Code int }
			if err := json.Unmarshal([]byte(rest), &x); err != nil {
				t.Fatal(err)
			}
			r.exit.Code = x.Code
			if x.Code == 137 {
				r.exit.Signal = "SIGKILL"
			}
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return r
}

// recordings are all that were made of the protocol in both directions.
func recordings(t *testing.T) []recording {
	t.Helper()
	names, err := filepath.Glob("testdata/*.rec")
	if err != nil || len(names) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	var list []recording
	for _, n := range names {
		n = strings.TrimSuffix(filepath.Base(n), ".rec")
		if !strings.Contains(n, ".") {
			list = append(list, record(t, n))
		}
	}
	return list
}

func (r recording) options(f stromboli.OutputFormat) stromboli.ClaudeOptions {
	o := stromboli.ClaudeOptions{
		OutputFormat:           f,
		IncludePartialMessages: bytes.Contains(bytes.Join(linesOf(r), nil), []byte(`"stream_event"`)),
	}
	if strings.HasPrefix(r.name, "schema") {
		o.JSONSchema = "{}"
	}
	return o
}

func linesOf(r recording) [][]byte {
	var list [][]byte
	for _, l := range r.lines {
		list = append(list, l.data)
	}
	return list
}

// play feeds a whole recording.
func play(r recording, f stromboli.OutputFormat) (*Turn, []stromboli.Event) {
	turn := NewTurn(r.options(f))
	var events []stromboli.Event
	for _, l := range r.lines {
		events = append(events, turn.Feed(l.stream, l.data)...)
	}
	return turn, events
}

// TestRecordings shows for each recording what the agent's lines became, in
// one file that is read at review.
func TestRecordings(t *testing.T) {
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	for _, r := range recordings(t) {
		turn := NewTurn(r.options(stromboli.OutputText))
		var steps []string
		was := ""
		for _, l := range r.lines {
			for _, e := range turn.Feed(l.stream, l.data) {
				if e.Type != stromboli.EventOutput {
					steps = append(steps, string(e.Type)+" "+string(e.Data))
				}
			}
			now := "works"
			switch {
			case turn.Over():
				now = "over"
			case turn.Answered():
				now = "waits"
			case turn.results == 0 && !turn.busy:
				now = ""
			}
			for _, b := range turn.BackgroundTasks() {
				now += ", " + b.Type + " " + b.Description
			}
			if now != was {
				steps = append(steps, "-> "+now)
			}
			was = now
		}
		err := enc.Encode(map[string]any{"recording": r.name, "steps": steps, "outcome": turn.Outcome(&r.exit)})
		if err != nil {
			t.Fatal(err)
		}
	}
	const golden = "testdata/recordings.golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("recordings differ from %s (-want +got); UPDATE_GOLDEN=1 writes it anew\n%s", golden, d)
	}
}

// TestTextIsWhatTheCLIPrints compares the output with what the CLI printed to
// standard output for the same conversation with --output-format=text.
func TestTextIsWhatTheCLIPrints(t *testing.T) {
	for _, r := range recordings(t) {
		want, err := os.ReadFile(filepath.Join("testdata", r.name+".text"))
		if os.IsNotExist(err) || r.name == "cut_block" { // joined on purpose
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Run(r.name, func(t *testing.T) {
			turn, _ := play(r, stromboli.OutputText)
			got := turn.Outcome(&r.exit).Output
			// Ids of requests and messages are the recorder's own counters.
			if d := cmp.Diff(strings.TrimSuffix(string(want), "\n"), strings.TrimSuffix(got, "\n")); d != "" {
				t.Errorf("(-cli +ours)\n%s", d)
			}
		})
	}
}

// TestStreamJSONIsWhatTheCLIPrints compares the kinds of lines with those that
// the CLI printed for a prompt on its command line.
func TestStreamJSONIsWhatTheCLIPrints(t *testing.T) {
	kinds := func(lines []string) []string {
		var list []string
		for _, l := range lines {
			var o struct{ Type, Subtype string }
			if err := json.Unmarshal([]byte(l), &o); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			list = append(list, o.Type+"/"+o.Subtype)
		}
		return list
	}
	for _, name := range []string{"plain", "tool_use", "denied"} {
		t.Run(name, func(t *testing.T) {
			r := record(t, name)
			turn, _ := play(r, stromboli.OutputStreamJSON)
			got := turn.Outcome(&r.exit).Output
			var want []string
			for _, l := range record(t, name+".stream-json").lines {
				want = append(want, string(l.data))
			}
			if d := cmp.Diff(kinds(want), kinds(strings.Split(got, "\n"))); d != "" {
				t.Errorf("(-cli +ours)\n%s", d)
			}
		})
	}
}

func TestJSONIsTheLastResultVerbatim(t *testing.T) {
	for _, name := range []string{"plain", "background_ends", "max_turns"} {
		r := record(t, name)
		turn, _ := play(r, stromboli.OutputJSON)
		var want string
		for _, l := range r.lines {
			if bytes.Contains(l.data, []byte(`"type":"result"`)) {
				want = string(l.data)
			}
		}
		if got := turn.Outcome(&r.exit).Output; got != want {
			t.Errorf("%s: got %.200q", name, got)
		}
	}
}

// TestReplay: a turn that goes on from stored events is the same turn.
func TestReplay(t *testing.T) {
	for _, f := range []stromboli.OutputFormat{stromboli.OutputText, stromboli.OutputStreamJSON} {
		for _, r := range recordings(t) {
			whole, all := play(r, f)
			want := whole.Outcome(&r.exit)
			for split := 0; split < len(r.lines); split += 1 + len(r.lines)/6 {
				first := NewTurn(r.options(f))
				var stored []stromboli.Event
				for _, l := range r.lines[:split] {
					stored = append(stored, first.Feed(l.stream, l.data)...)
				}
				second := NewTurn(r.options(f))
				for _, e := range stored {
					second.Replay(e)
				}
				if second.Over() != first.Over() || second.Answered() != first.Answered() {
					t.Fatalf("%s: split at %d: over and answered differ", r.name, split)
				}
				for _, l := range r.lines[split:] {
					stored = append(stored, second.Feed(l.stream, l.data)...)
				}
				if !reflect.DeepEqual(all, stored) { // much faster than cmp.Equal
					t.Fatalf("%s: split at %d: events differ\n%s", r.name, split, cmp.Diff(all, stored))
				}
				if d := cmp.Diff(want, second.Outcome(&r.exit)); d != "" {
					t.Fatalf("%s: split at %d: outcomes differ\n%s", r.name, split, d)
				}
			}
		}
	}
}
