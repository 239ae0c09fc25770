package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func BenchmarkAppend(b *testing.B) {
	data := []byte(`{"stream":"stdout","line":"` + strings.Repeat("x", 400) + `"}`)
	for _, size := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b, store.Config{})
			run := create(b, s)
			line := int64(0)
			for b.Loop() {
				events := make([]stromboli.Event, size)
				for i := range events {
					line++
					events[i] = stromboli.Event{Type: stromboli.EventOutput, Line: line, Data: data}
				}
				if _, err := s.AppendEvents(b.Context(), run.ID, 1, events); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkAppendMany shows the group commit: many runs, one event each.
func BenchmarkAppendMany(b *testing.B) {
	s := open(b, store.Config{})
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		run := create(b, s)
		for pb.Next() {
			if _, err := s.AppendEvents(b.Context(), run.ID, 1, []stromboli.Event{{Type: "x"}}); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkCreate(b *testing.B) {
	s := open(b, store.Config{})
	for b.Loop() {
		create(b, s)
	}
}

// BenchmarkMillion reads from a store of a million runs.
func BenchmarkMillion(b *testing.B) {
	s := open(b, store.Config{})
	run := create(b, s)
	if err := s.Multiply(b.Context(), run.ID, 1_000_000); err != nil {
		b.Fatal(err)
	}
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.GetRun(b.Context(), run.Tenant, run.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	_, cursor, err := s.ListRuns(b.Context(), stromboli.RunFilter{Tenant: run.Tenant, Limit: 1000})
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]stromboli.RunFilter{
		"async":     {Kinds: []stromboli.Kind{stromboli.KindAsync}},
		"all":       {},
		"next":      {Cursor: cursor},
		"running":   {Statuses: []stromboli.Status{stromboli.Running}},
		"rare":      {Kinds: []stromboli.Kind{stromboli.KindAsync}, Statuses: []stromboli.Status{stromboli.Crashed}},
		"session":   {SessionID: run.SessionID},
		"unlabeled": {Metadata: map[string]string{"a": "b"}},
	} {
		b.Run("list_50/"+name, func(b *testing.B) {
			f.Tenant, f.Limit = run.Tenant, 50
			for b.Loop() {
				if _, _, err := s.ListRuns(b.Context(), f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			create(b, s)
		}
	})
	b.Run("claim_none", func(b *testing.B) {
		for b.Loop() {
			if _, ok, err := s.ClaimPending(b.Context(), "one"); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
}

// TestPlans: no list reads the whole table, and none sorts more than the pages
// that it joins.
func TestPlans(t *testing.T) {
	s := open(t, store.Config{})
	page, cursor := "default", "1.1"
	for _, f := range []stromboli.RunFilter{
		{},
		{Cursor: cursor},
		{Kinds: []stromboli.Kind{stromboli.KindAsync}, Cursor: cursor},
		{Kinds: []stromboli.Kind{stromboli.KindAsync, stromboli.KindSync}, Statuses: []stromboli.Status{stromboli.Failed}},
		{SessionID: "s", Cursor: cursor},
		{Metadata: map[string]string{"a": "b", "c": "d"}, Cursor: cursor},
	} {
		f.Tenant, f.Limit = page, 50
		plan, err := s.Plan(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(plan, func(step string) bool {
			return strings.HasPrefix(step, "SCAN") && !strings.HasPrefix(step, "SCAN page") && !strings.HasPrefix(step, "SCAN (subquery") && step != "SCAN CONSTANT ROW"
		}) {
			t.Errorf("%+v scans:\n%s", f, strings.Join(plan, "\n"))
		}
		sorts := 0
		for _, step := range plan {
			if strings.Contains(step, "TEMP B-TREE") {
				sorts++
			}
		}
		if sorts > 1 {
			t.Errorf("%+v sorts %d times:\n%s", f, sorts, strings.Join(plan, "\n"))
		}
	}
}
