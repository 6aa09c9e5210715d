/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the files of calibration. Both are untrusted: ids and shapes are checked before use. */
#include "quant/calibration.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"

#define HELD_SHARE 9 /* one window of so many measures the loss */
#define LEAST_WINDOWS 2

static int open_file(const char *path, int *ret_fd, uint64_t *ret_bytes)
{
	_cleanup_(cleanup_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	*ret_bytes = 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		return message_set(-errno, "%s: cannot open: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return message_set(-EINVAL, "%s: not a regular file", path);
	*ret_bytes = (uint64_t)st.st_size;
	*ret_fd = take_fd(&fd);
	return 0;
}

static int read_window(int fd, const char *path, unsigned id_bytes, uint64_t first, size_t n,
		       size_t n_vocab, uint8_t *scratch, uint32_t *ids)
{
	int r = io_read_at(fd, scratch, n * id_bytes, first * id_bytes);

	if (r)
		return message_set(r, "%s: cannot read: %s", path, strerror(-r));
	for (size_t i = 0; i < n; i++) {
		const uint8_t *at = scratch + i * id_bytes;

		ids[i] = (uint32_t)(at[0] | at[1] << 8);
		if (id_bytes == 4)
			ids[i] |= (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
		if (ids[i] >= n_vocab)
			return message_set(-EINVAL, "%s: id %u at %llu; the vocabulary has %zu: is it text "
					   "of this model's tokenizer?", path, ids[i],
					   (unsigned long long)(first + i), n_vocab);
	}
	return 0;
}

int calibration_text_read(const char *path, size_t n_vocab, size_t n_windows, size_t length,
			  struct calibration_text *ret_text)
{
	size_t n_path = strlen(path);
	unsigned id_bytes = n_path > 4 && strcmp(path + n_path - 4, ".u32") == 0 ? 4 : 2;
	struct calibration_text text = { .length = length };
	_cleanup_(cleanup_memory) uint8_t *scratch = memory_array(length + 1, 4);
	_cleanup_(cleanup_fd) int fd = -1;
	size_t at[2];
	uint64_t n_bytes, n_ids, have;
	int r = open_file(path, &fd, &n_bytes);

	if (r)
		return r;
	n_ids = n_bytes / id_bytes;
	have = n_ids ? (n_ids - 1) / length : 0;
	if (have < LEAST_WINDOWS)
		return message_set(-ENODATA, "%s: has %llu ids; %zu are the least to calibrate with", path,
				   (unsigned long long)n_ids, LEAST_WINDOWS * length + 1);
	text.n_windows = have < n_windows ? have : n_windows;
	text.n_held = (text.n_windows + HELD_SHARE / 2) / HELD_SHARE;
	if (text.n_held == 0)
		text.n_held = 1;
	text.ids = memory_array(text.n_windows * (length + 1), sizeof(*text.ids));
	if (!text.ids || !scratch)
		r = message_set(-ENOMEM, "not enough memory to calibrate");
	at[0] = 0;
	at[1] = text.n_windows - text.n_held;
	for (size_t i = 0; !r && i < text.n_windows; i++) {
		size_t to = at[i % HELD_SHARE == HELD_SHARE / 2 ||
			       (text.n_windows <= HELD_SHARE / 2 && i + 1 == text.n_windows)]++;

		r = read_window(fd, path, id_bytes, i * have / text.n_windows * length, length + 1,
				n_vocab, scratch, text.ids + to * (length + 1));
	}
	if (r) {
		calibration_text_deinit(&text);
		return r;
	}
	*ret_text = text;
	return 0;
}

void calibration_text_deinit(struct calibration_text *text)
{
	text->ids = memory_free(text->ids);
}

/* --- statistics --- */

int calibration_stats_open(const char *path, struct calibration_stats *ret_stats)
{
	struct calibration_stats stats = { .fd = -1 };
	uint64_t n_bytes;
	int r = open_file(path, &stats.fd, &n_bytes);

	if (r)
		return r;
	stats.path = memory_strdup(path);
	r = stats.path ? safetensors_init(&stats.st, stats.fd, n_bytes) :
			 message_set(-ENOMEM, "not enough memory");
	if (r) {
		stats.fd = close_fd(stats.fd);
		memory_free(stats.path);
		return message_prefix(r, "%s", path);
	}
	*ret_stats = stats;
	return 0;
}

void calibration_stats_close(struct calibration_stats *stats)
{
	safetensors_deinit(&stats->st);
	stats->fd = close_fd(stats->fd);
	stats->path = memory_free(stats->path);
}

static const struct safetensors_tensor *find(const struct calibration_stats *stats, const char *name)
{
	for (uint64_t i = 0; i < stats->st.n_tensors; i++)
		if (strcmp(stats->st.tensors[i].name, name) == 0)
			return &stats->st.tensors[i];
	return NULL;
}

int calibration_stats_get(const struct calibration_stats *stats, const char *weight, size_t n,
			  enum calibration_kind *ret_kind, float **ret_values)
{
	static const char *const suffixes[] = { [CALIBRATION_ABSMAX] = "",
						[CALIBRATION_SQUARE] = ".mean_square",
						[CALIBRATION_GRAM] = ".covariance" };
	const struct safetensors_tensor *tensor = NULL;
	enum calibration_kind kind = CALIBRATION_GRAM;
	size_t stem = strlen(weight);
	char name[512];
	bool fits;
	int r;

	if (stem > 7 && strcmp(weight + stem - 7, ".weight") == 0)
		stem -= 7;
	for (; kind != CALIBRATION_NONE; kind--) {
		if (snprintf(name, sizeof(name), "%.*s%s", (int)stem, weight, suffixes[kind]) <
			    (int)sizeof(name) &&
		    (tensor = find(stats, name)))
			break;
	}
	*ret_kind = kind;
	*ret_values = NULL;
	if (kind == CALIBRATION_NONE)
		return 0;
	fits = kind == CALIBRATION_GRAM ?
		       tensor->n_dims == 2 && tensor->dims[0] == n && tensor->dims[1] == n :
		       tensor->n_dims == 1 && tensor->dims[0] == n;
	if (tensor->dtype != DCMEM_F32 || !fits)
		return message_set(-EINVAL, "%s: %s is not F32 for %zu inputs; calibrate this model again",
				   stats->path, name, n);
	*ret_values = memory_alloc((size_t)tensor->n_bytes);
	if (!*ret_values)
		return message_set(-ENOMEM, "not enough memory to calibrate");
	r = io_read_at(stats->fd, *ret_values, (size_t)tensor->n_bytes,
		       stats->st.head_bytes + tensor->offset);
	if (r) {
		*ret_values = memory_free(*ret_values);
		return message_set(r, "%s: cannot read %s: %s", stats->path, name, strerror(-r));
	}
	return 0;
}
