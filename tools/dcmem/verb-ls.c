/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem ls`: what a container holds. Reads header and index, no tensor data.
 */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/cpu.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "summary.h"
#include "table.h"
#include "verb-ls-model.h"
#include "verb.h"

static int help(void)
{
	printf("Usage: dcmem ls FILE [--groups | --hints] [--json]\n"
	       "       dcmem ls MODEL [--json] [--socket PATH]\n\n"
	       "Lists the tensors of a container with their shapes, dtypes, codecs and ratios, the\n"
	       "files it restores, and totals; or the tensors of a model that a daemon holds. Tensors\n"
	       "whose bytes are those of an earlier one are stored once and shown as `shared`.\n\n"
	       "  --groups  one line for tensors whose names differ in numbers alone\n"
	       "  --hints   what each codec would make of each tensor, as `dcmem pack --hints` measured\n"
	       "            it: stored bytes, and GB/s of one core\n"
	       "  --json    one JSON document; hints are in it, where there are any\n"
	       "  --socket PATH  the daemon's socket, for a MODEL\n\n"
	       "Example: which kinds of tensors compress worst?\n\n"
	       "  dcmem ls my-model.dcmem --groups\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the container is damaged,\n"
	       "4 no daemon.\n");
	return verb_flush("ls");
}

static void shape_text(const struct container_tensor *tensor, char *text, size_t n_bytes)
{
	size_t at = (size_t)snprintf(text, n_bytes, "[");

	for (unsigned i = 0; i < tensor->n_dims && at < n_bytes; i++)
		at += (size_t)snprintf(text + at, n_bytes - at, "%s%llu", i ? "," : "",
				       (unsigned long long)tensor->dims[i]);
	if (at < n_bytes)
		snprintf(text + at, n_bytes - at, "]");
}

static int tensor_row(struct table *table, const struct index *index, uint64_t id)
{
	char shape[8 * 21 + 8], raw[24], stored_text[24], ratio[24];
	const struct container_tensor *tensor;
	const char *name, *codec;
	uint64_t stored;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_tensor_name(index, tensor, &name);
	if (!r)
		r = summary_tensor(index, tensor, &stored, &codec);
	if (r)
		return r;
	shape_text(tensor, shape, sizeof(shape));
	return table_row(table, (const char *[]){ name, shape, dtype_name(tensor->dtype),
						  table_bytes(tensor->n_bytes, raw),
						  table_bytes(stored, stored_text),
						  table_ratio(tensor->n_bytes, stored, ratio),
						  codec });
}

static int print_tensors(const struct container *container)
{
	struct table table;
	int r;

	table_init(&table, 7, "lllrrrl");
	r = table_row(&table, (const char *[]){ "TENSOR", "SHAPE", "DTYPE", "RAW", "STORED",
						"RATIO", "CODEC" });
	for (uint64_t id = 0; !r && id < container->index.n_tensors; id++)
		r = tensor_row(&table, &container->index, id);
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r < 0 ? message_set(r, "not enough memory for the table") : r;
}

/* GB/s (10^9) of so many picoseconds a byte. */
static const char *speed_text(uint32_t ps, char ret_text[24])
{
	snprintf(ret_text, 24, "%.2f", 1000 / (double)(ps ? ps : 1));
	return ret_text;
}

static const char *hint_codec(const struct container_hint *hint)
{
	const char *name = dcmem_codec_name(hint->codec);

	return name ? name : "?";
}

static const char *hint_effort(const struct container_hint *hint)
{
	return hint->effort > 1 ? "dense" : "normal";
}

static int hint_rows(struct table *table, const struct index *index, uint64_t id)
{
	char stored[24], ratio[24], decode[24], encode[24];
	const struct container_tensor *tensor;
	const struct container_hint *hints = NULL;
	const char *name;
	unsigned n = 0;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_tensor_name(index, tensor, &name);
	if (!r)
		r = index_hints(index, id, &hints, &n);
	for (unsigned i = 0; !r && i < n; i++)
		r = table_row(table, (const char *[]){
			i ? "" : name, hint_codec(&hints[i]), hint_effort(&hints[i]),
			table_bytes(hints[i].stored_bytes, stored),
			table_ratio(tensor->n_bytes, hints[i].stored_bytes, ratio),
			speed_text(hints[i].decode_ps, decode),
			speed_text(hints[i].encode_ps, encode) });
	return r;
}

static int print_hints(const struct container *container)
{
	struct table table;
	int r;

	if (container->index.n_hints == 0)
		return message_set(INDEX_E_NOT_FOUND,
				   "the container has no hints: pack the model with --hints");
	table_init(&table, 7, "lllrrrr");
	r = table_row(&table, (const char *[]){ "TENSOR", "CODEC", "EFFORT", "STORED", "RATIO",
						"DECODE", "ENCODE" });
	for (uint64_t id = 0; !r && id < container->index.n_tensors; id++)
		r = hint_rows(&table, &container->index, id);
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r < 0 ? message_set(r, "not enough memory for the table") : r;
}

static int json_hints(const struct index *index, uint64_t id, struct json_out *out)
{
	const struct container_hint *hints = NULL;
	unsigned n = 0;
	int r = index_hints(index, id, &hints, &n);

	if (r || index->n_hints == 0)
		return r;
	json_out_array(out, "hints");
	for (unsigned i = 0; i < n; i++) {
		json_out_object(out, NULL);
		json_out_string(out, "codec", hint_codec(&hints[i]));
		json_out_string(out, "effort", hint_effort(&hints[i]));
		json_out_u64(out, "stored_bytes", hints[i].stored_bytes);
		json_out_u64(out, "decode_ps_per_byte", hints[i].decode_ps);
		json_out_u64(out, "encode_ps_per_byte", hints[i].encode_ps);
		json_out_string(out, "path", hints[i].path < CPU_N_PATHS ?
						      cpu_path_name(hints[i].path) : "?");
		json_out_end(out, '}');
	}
	json_out_end(out, ']');
	return 0;
}

static int print_files(const struct container *container)
{
	struct summary_totals totals;
	struct table table;
	char a[24], b[24], ratio[24];
	int r;

	table_init(&table, 3, "lrl");
	r = table_row(&table, (const char *[]){ "FILE", "BYTES", "KIND" });
	for (uint64_t i = 0; !r && i < container->index.n_files; i++) {
		const struct container_file *file;
		const char *name;

		r = index_file(&container->index, i, &file);
		if (!r)
			r = index_file_name(&container->index, file, &name);
		if (!r)
			r = table_row(&table, (const char *[]){
				name, table_bytes(file->file_bytes, a),
				file->kind == CONTAINER_FILE_SAFETENSORS ? "safetensors" : "verbatim" });
	}
	if (!r)
		r = summary_totals(container, &totals);
	if (!r) {
		printf("\n");
		table_print(&table, stdout);
		printf("\n%llu tensors (%llu shared), %llu files: %s in a container of %s, ratio %s\n",
		       (unsigned long long)totals.n_tensors, (unsigned long long)totals.n_shared,
		       (unsigned long long)totals.n_files, table_bytes(totals.file_bytes, a),
		       table_bytes(totals.container_bytes, b),
		       table_ratio(totals.file_bytes, totals.container_bytes, ratio));
	}
	table_deinit(&table);
	return r < 0 ? message_set(r, "not enough memory for the table") : r;
}

static int json_tensors(const struct container *container, struct json_out *out)
{
	const struct index *index = &container->index;

	json_out_array(out, "tensors");
	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const char *name, *codec;
		uint64_t stored;
		int r = index_tensor(index, id, &tensor);

		if (!r)
			r = index_tensor_name(index, tensor, &name);
		if (!r)
			r = summary_tensor(index, tensor, &stored, &codec);
		if (r)
			return r;
		json_out_object(out, NULL);
		json_out_string(out, "name", name);
		json_out_string(out, "dtype", dtype_name(tensor->dtype));
		json_out_array(out, "shape");
		for (unsigned i = 0; i < tensor->n_dims; i++)
			json_out_u64(out, NULL, tensor->dims[i]);
		json_out_end(out, ']');
		json_out_u64(out, "n_bytes", tensor->n_bytes);
		json_out_u64(out, "stored_bytes", stored);
		json_out_u64(out, "page_bytes", tensor->page_bytes);
		json_out_string(out, "codec", codec);
		json_out_bool(out, "shared", tensor->flags & CONTAINER_TENSOR_SHARED);
		json_out_bool(out, "quantized", tensor->flags & CONTAINER_TENSOR_QUANTIZED);
		json_out_array(out, "companions");
		for (uint32_t i = 0; i < tensor->n_companions; i++) {
			const struct container_companion *companion;

			r = index_companion(index, tensor->first_companion + i, &companion);
			if (r)
				return r;
			json_out_object(out, NULL);
			json_out_u64(out, "tensor", companion->companion);
			json_out_u64(out, "relation", companion->relation);
			json_out_i64(out, "axis", companion->axis);
			json_out_u64(out, "group_size", companion->group_size);
			json_out_end(out, '}');
		}
		json_out_end(out, ']');
		r = json_hints(index, id, out);
		if (r)
			return r;
		json_out_end(out, '}');
	}
	json_out_end(out, ']');
	return 0;
}

static int json_files(const struct container *container, struct json_out *out)
{
	json_out_array(out, "files");
	for (uint64_t i = 0; i < container->index.n_files; i++) {
		const struct container_file *file;
		const char *name;
		int r = index_file(&container->index, i, &file);

		if (!r)
			r = index_file_name(&container->index, file, &name);
		if (r)
			return r;
		json_out_object(out, NULL);
		json_out_string(out, "name", name);
		json_out_u64(out, "n_bytes", file->file_bytes);
		json_out_string(out, "kind", file->kind == CONTAINER_FILE_SAFETENSORS ?
						     "safetensors" : "verbatim");
		json_out_end(out, '}');
	}
	json_out_end(out, ']');
	return 0;
}

static int print_json(const struct container *container, const char *path)
{
	char fingerprint[33];
	struct json_out out;
	int r;

	for (int i = 0; i < 16; i++)
		snprintf(fingerprint + 2 * i, 3, "%02x", container->header.fingerprint[i]);
	json_out_init(&out, stdout);
	json_out_object(&out, NULL);
	json_out_string(&out, "path", path);
	json_out_u64(&out, "version", container->header.version);
	json_out_string(&out, "fingerprint", fingerprint);
	json_out_u64(&out, "n_segments", container->index.n_segments);
	r = json_tensors(container, &out);
	if (!r)
		r = json_files(container, &out);
	if (!r)
		r = summary_json(container, &out);
	json_out_end(&out, '}');
	return r;
}

int verb_ls(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "json", no_argument, NULL, 'J' },
		{ "groups", no_argument, NULL, 'g' },
		{ "hints", no_argument, NULL, 'H' },
		{ "socket", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *socket_path = NULL;
	bool json = false, groups = false, hints = false;
	struct container container;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("ls", "unknown option: %s", argv[optind - 1]);
		if (c == 's')
			socket_path = optarg;
		json |= c == 'J';
		groups |= c == 'g';
		hints |= c == 'H';
	}
	if (argc - optind != 1)
		return verb_usage("ls", "needs one FILE or MODEL");
	if (groups && hints)
		return verb_usage("ls", "--groups or --hints, not both");
	if (!groups && !hints && ls_is_model(argv[optind]))
		return ls_model(argv[optind], socket_path, json);
	r = container_open(&container, argv[optind]);
	if (r)
		return verb_failure("ls", r, message_get());
	if (json)
		r = print_json(&container, argv[optind]);
	else if (groups)
		r = summary_print_groups(&container);
	else if (hints)
		r = print_hints(&container);
	else
		r = print_tensors(&container);
	if (!r && !json && !hints)
		r = print_files(&container);
	container_close(&container);
	return r ? verb_failure("ls", r, message_get()) : verb_flush("ls");
}
