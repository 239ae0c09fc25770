package claude

import (
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

type taskData struct {
	ID          string `json:"task_id"`
	Type        string `json:"task_type"`
	Description string `json:"description"`
}

// onTask keeps the list of background tasks. background_tasks_changed carries
// the whole list; the other lines keep it right for a CLI that leaves that one
// out.
func (t *Turn) onTask(o object, sub string) {
	id := get[string](o, "task_id")
	switch sub {
	case "background_tasks_changed":
		// Tasks that are off the list without a word of their end were
		// stopped; a word that comes later corrects that.
		before := len(t.tasks)
		t.tasks = nil
		for _, d := range get[[]taskData](o, "tasks") {
			t.addTask(d)
		}
		if t.Answered() && len(t.tasks) < before {
			t.cutOff = true
		}
	case "task_started":
		if get[bool](o, "is_backgrounded") {
			t.addTask(taskData{ID: id, Type: get[string](o, "task_type"), Description: get[string](o, "description")})
		}
	case "task_updated":
		patch := get[struct {
			Status string `json:"status"`
		}](o, "patch")
		t.endTask(id, patch.Status)
	case "task_notification":
		t.endTask(id, get[string](o, "status"))
	}
}

func stopped(status string) bool { return status == "stopped" || status == "killed" }

func ended(status string) bool {
	return status == "completed" || status == "failed" || stopped(status)
}

func (t *Turn) addTask(d taskData) {
	known := func(b stromboli.BackgroundTask) bool { return b.ID == shorten(d.ID) }
	if d.ID == "" || len(t.tasks) >= maxQueued || slices.ContainsFunc(t.tasks, known) {
		return
	}
	t.tasks = append(t.tasks, stromboli.BackgroundTask{
		ID: shorten(d.ID), Type: shorten(d.Type), Description: shorten(d.Description),
	})
}

// endTask takes a task off the list. The CLI tells the model of the end in a
// turn of its own, except when the task was stopped on purpose. During a turn
// it can't be foreseen whether the end is told inside it or after it.
func (t *Turn) endTask(id, status string) {
	if !ended(status) {
		return
	}
	t.tasks = slices.DeleteFunc(t.tasks, func(b stromboli.BackgroundTask) bool { return b.ID == shorten(id) })
	switch {
	case !t.Answered():
	case stopped(status):
		t.cutOff = true
	default:
		t.awaiting, t.cutOff = true, false
	}
}

// shorten bounds a name that the sandbox chose. The copy lets go of the line.
func shorten(s string) string {
	const limit = 512
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return strings.Clone(s)
}
