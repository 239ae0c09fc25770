package stromboli

import "time"

// Archive is the events of a finished run outside of the database.
type Archive struct {
	RunID string
	Place string // names the directory or bucket
	Key   string // of the blob in it
	Bytes int64
	// Frames are the archive's parts, in order, each of which can be read alone.
	Frames []ArchiveFrame
}

// ArchiveFrame is a part of an archive: the events from First to before the next
// part's.
type ArchiveFrame struct {
	First  int64 `json:"first"` // sequence
	Offset int64 `json:"offset"`
	Bytes  int64 `json:"bytes"`
}

// SharedArchive begins the place of an archive that is another server's too: one
// from whose backup this server was restored. It is read, and never deleted.
const SharedArchive = "shared "

// FinishedRun is what retention looks at of a run that has ended.
type FinishedRun struct {
	// Number is the run's place in the order of submissions.
	Number     int64
	ID         string
	SessionID  string
	FinishedAt time.Time
	LastSeq    int64
	// ArchivePlace and ArchiveKey name the blob that holds the run's events, or may
	// hold a part of them; empty: there is none.
	ArchivePlace, ArchiveKey string
	ArchiveBytes             int64
	// Archived: the blob is whole, and the rows of the events may go.
	Archived bool
}
