package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sqlite3(1) on a database of a lower layer, in write-ahead and in rollback mode.

const (
	databaseName = "db"
	databaseRow  = 1000 // bytes, roughly
	// unixTime is the time of day in SQL, in seconds with milliseconds.
	unixTime = "(julianday('now') - 2440587.5) * 86400"
)

func (b *bench) databaseRows() int {
	if b.quick {
		return 50 << 20 / databaseRow
	}
	return 500 << 20 / databaseRow
}

// databaseLower holds a database of one table, its rows in the order of their ids and an index on a random column.
func (b *bench) databaseLower() (*lower, error) {
	return b.lowerOnce("database", func(dir string) error {
		cmd := exec.Command("sqlite3", "-batch", "-bail", filepath.Join(dir, databaseName))
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`
			pragma journal_mode=off;
			pragma synchronous=off;
			create table t(id integer primary key, n integer, k integer, pad text);
			with recursive i(i) as (select 1 union all select i + 1 from i where i < %d)
			insert into t select i, 0, (i * 7919) %% 1000003, hex(randomblob(%d)) from i;
			create index tk on t(k);
			`, b.databaseRows(), (databaseRow-40)/2))
		path := filepath.Join(dir, databaseName)
		return errors.Join(b.child(10*time.Minute, nil, cmd), age(path), warm(path))
	})
}

func (b *bench) databases() []experiment {
	var list []experiment
	for _, c := range []struct {
		mode         string
		transactions int
	}{{"wal", 2000}, {"delete", 500}} {
		x := experiment{
			name:     "sqlite-" + c.mode,
			systems:  all,
			deadline: b.within(20 * time.Minute),
			lower:    b.databaseLower,
			rows: []row{
				{
					key: "time", title: fmt.Sprintf("%d transactions, journal_mode=%s", c.transactions, c.mode),
					must: []bound{against(plain, 1.15), against(kernel, 1.1)},
				},
				{key: "first", title: "open and one transaction, before that"},
			},
		}
		// What the plain database answers in a round, which the others must answer as well.
		answers := map[int]map[system]string{}
		x.measure = func(m *mounted, round int) (values, error) {
			v, err := b.transact(x.deadline, m, c.mode, c.transactions, round)
			if err != nil {
				return nil, err
			}
			if answers[round] == nil {
				answers[round] = map[system]string{}
			}
			if answers[round][m.system], err = b.answer(x.deadline, m); err != nil {
				return nil, err
			}
			for y, a := range answers[round] {
				if mine := answers[round][m.system]; a != mine {
					return nil, fmt.Errorf("%s answers %q, %s %q: %w", y, a, m.system, mine, unix.EUCLEAN)
				}
			}
			return v, nil
		}
		list = append(list, x)
	}
	return list
}

// transact runs the transactions of a round and returns how long they took after the first one.
func (b *bench) transact(deadline time.Duration, m *mounted, mode string, transactions, round int) (values, error) {
	keys := rand.New(rand.NewPCG(6, uint64(round)))
	var script bytes.Buffer
	update := func() {
		fmt.Fprintf(&script, "update t set n = n + %d, k = %d, pad = substr(pad, 2) || 'x' where id = %d;\n",
			1+keys.IntN(100), keys.IntN(1000003), 1+keys.IntN(b.databaseRows()))
	}
	clock := func() { fmt.Fprintf(&script, "select 'at', printf('%%.3f', %s);\n", unixTime) }
	fmt.Fprintf(&script, "pragma journal_mode=%s;\n", mode)
	update()
	clock()
	for range transactions {
		update()
	}
	if mode == "wal" {
		script.WriteString("pragma wal_checkpoint(truncate);\n")
	}
	clock()
	cmd := exec.Command("sqlite3", "-batch", "-bail", filepath.Join(m.root(), databaseName))
	cmd.Stdin = &script
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	start := float64(time.Now().UnixNano()) / 1e9
	if err := b.child(deadline, m, cmd); err != nil {
		return nil, err
	}
	var at []float64
	for line := range strings.Lines(stdout.String()) {
		if t, ok := strings.CutPrefix(strings.TrimSpace(line), "at|"); ok {
			s, err := strconv.ParseFloat(t, 64)
			if err != nil {
				return nil, err
			}
			at = append(at, s)
		}
	}
	if len(at) != 2 {
		return nil, fmt.Errorf("sqlite3 said %q: %w", stdout.String(), unix.EPROTO)
	}
	return values{"first": at[0] - start, "time": at[1] - at[0]}, nil
}

// answer mounts m once more, above the upper that it left, and returns what a query of all the database answers.
func (b *bench) answer(deadline time.Duration, m *mounted) (string, error) {
	if err := m.detach(); err != nil {
		return "", err
	}
	if err := b.attach(m); err != nil {
		return "", err
	}
	cmd := exec.Command("sqlite3", "-batch", "-bail", filepath.Join(m.root(), databaseName))
	cmd.Stdin = strings.NewReader(`
		pragma integrity_check;
		select count(*), sum(n), sum(k) from t;
		select id, n, k, pad from t order by id;
		select k, id from t indexed by tk order by k, id;
		`)
	out := answerHash{Hash: sha256.New()}
	cmd.Stdout = &out
	if err := b.child(deadline, m, cmd); err != nil {
		return "", err
	}
	head := strings.ReplaceAll(strings.TrimSpace(out.head), "\n", " ")
	return fmt.Sprintf("%s %x", head, out.Sum(nil)), nil
}

// answerHash hashes what it is given and keeps the start of it, to tell a wrong answer by.
type answerHash struct {
	hash.Hash
	head string
}

func (a *answerHash) Write(p []byte) (int, error) {
	if room := 60 - len(a.head); room > 0 {
		a.head += string(p[:min(room, len(p))])
	}
	return a.Hash.Write(p)
}
